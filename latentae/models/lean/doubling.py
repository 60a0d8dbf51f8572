"""Nearest-neighbour doubling and a 3×3 convolution in one, with 4/9 or 1/4 of the multiplications.

As one transposed convolution, which has gradients; or, for inference, as nine matrix products.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from latentae.models.lean.functions import Gradients, autocast_dtype

Products = tuple[Tensor, Tensor, Tensor, Tensor]
"""The matrices of ``doubling_products``."""

# Values of a chunk's input that a CPU's caches hold well together with what is made of them.
_VALUES_AT_ONCE = 2**19


def doubled_conv(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Repeats each pixel of inputs [B, C, H, W] 2×2 times and applies a 3×3 convolution with padding 1.

    A 3×3 window over doubled pixels sees at most 2×2 different ones. So the weights that meet the same pixel
    can be added up: a 4×4 kernel with stride 2, which is the 3×3 kernel convolved with a 2×2 kernel of ones.
    The result differs by rounding only, and the doubled tensor never exists.

    Args:
        weight: [C', C, 3, 3].
        bias: [C'].

    Returns:
        [B, C', 2H, 2W].
    """
    return _DoubledConv.apply(inputs, weight, bias, autocast_dtype(inputs, weight))


class _DoubledConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(inputs, weight)  # not the kernel: it is larger and quickly made
        ctx.dtype, ctx.bias_size = dtype, None if bias is None else list(bias.shape)
        bias = None if bias is None else bias.to(dtype)
        kernel = doubling_kernel(weight.to(dtype))
        return F.conv_transpose2d(inputs.to(dtype), kernel, bias, stride=2, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Gradients:
        inputs, weight = ctx.saved_tensors
        of_inputs, of_kernel, of_bias = torch.ops.aten.convolution_backward(
            gradient,
            inputs.to(ctx.dtype),
            doubling_kernel(weight.to(ctx.dtype)),
            ctx.bias_size,
            [2, 2],
            [1, 1],
            [1, 1],
            True,
            [0, 0],
            1,
            list(ctx.needs_input_grad[:3]),
        )
        of_weight = None
        if of_kernel is not None:
            flat = of_kernel.reshape(-1, 16) @ _doubling_matrix(of_kernel)
            of_weight = flat.view(*of_kernel.shape[:2], 3, 3).transpose(0, 1)
        found = (None if g is None else g.to(weight.dtype) for g in (of_weight, of_bias))
        return None if of_inputs is None else of_inputs.to(inputs.dtype), *found, None


def doubling_kernel(weight: Tensor) -> Tensor:
    """Returns the transposed convolution's kernel [C, C', 4, 4] for the 3×3 weight [C', C, 3, 3]."""
    outputs, channels = weight.shape[:2]
    # As one matrix product, because sums of slices would read memory in steps of nine values.
    flat = weight.transpose(0, 1).reshape(-1, 9) @ _doubling_matrix(weight).t()
    return flat.view(channels, outputs, 4, 4)


def _doubling_matrix(like: Tensor) -> Tensor:
    """Returns the matrix [16, 9] that makes the 4×4 kernel of a 3×3 weight, which it turns by 180°."""
    # The side is [[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]]. It is computed on the device: to copy it from
    # the host would wait for what a GPU is doing.
    rows, columns = (torch.arange(count, device=like.device) for count in (4, 3))
    places = rows[:, None] + columns
    side = ((places == 2) | (places == 3)).to(like.dtype)
    return torch.kron(side, side)


# Inference: nine products per pixel instead of thirty-six.


def doubling_products(weight: Tensor) -> Products:
    """Returns the matrices that ``doubled_by_products`` takes, for the 3×3 weight [C', C, 3, 3].

    Along one side, with weights g and differences d[i] = x[i] − x[i−1], the two output pixels at i are

        y[2i]   = g0·x[i−1] + (g1 + g2)·x[i] = (g0 + g1 + g2)·x[i] − g0·d[i]
        y[2i+1] = (g0 + g1)·x[i] + g2·x[i+1] = (g0 + g1 + g2)·x[i] + g2·d[i+1]

    So three products per pixel do the work of six, and nine that of thirty-six in two dimensions. It is what
    is left of the convolution F(2×2, 3×3) of Lavin and Gray (arXiv 1509.09308) when pixels repeat.

    Returns:
        for x [C, C'], its differences between rows and between columns [C, 2·C'], and for the differences of
        the differences [C, 4·C'].
    """
    outputs, channels = weight.shape[:2]
    ones, first, last = [1, 1, 1], [1, 0, 0], [0, 0, 1]
    pairs = [
        (1, ones, ones),
        (-1, first, ones),
        (1, last, ones),
        (-1, ones, first),
        (1, ones, last),
        (1, first, first),
        (-1, first, last),
        (-1, last, first),
        (1, last, last),
    ]
    matrix = weight.new_tensor([[sign * a * b for a in row for b in column] for sign, row, column in pairs])
    # Of all weights at once, for memory's sake, as in ``doubling_kernel``: [9, C', C].
    sums = torch.mm(matrix, weight.reshape(-1, 9).t()).view(9, outputs, channels)
    whole, of_rows, of_columns, of_both = (part.flatten(0, 1).t() for part in sums.split([1, 2, 2, 4]))
    return whole, of_rows, of_columns, of_both


def doubled_by_products(inputs: Tensor, products: Products, bias: Tensor | None) -> Tensor:
    """Returns what ``doubled_conv`` does, in channels last and without gradients.

    Args:
        inputs: [B, C, H, W].
        products: from ``doubling_products``.
        bias: [C'].

    Returns:
        [B, C', 2H, 2W].
    """
    batch, channels, height, width = inputs.shape
    whole, of_rows, of_columns, of_both = products
    outputs = whole.shape[1]
    # With a border of one pixel, as the convolution's padding has it: zero.
    padded = F.pad(inputs.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    doubled = inputs.new_empty(batch, 2 * height, 2 * width, outputs)
    size = max(1, _VALUES_AT_ONCE // (width * max(channels, outputs)))
    for image, top in ((image, top) for image in range(batch) for top in range(0, height, size)):
        count = min(size, height - top)
        values = padded[image, top : top + count + 2]
        between_columns = values[:, 1:] - values[:, :-1]
        pixels = values[1:-1, 1:-1].reshape(-1, channels)
        same = pixels @ whole if bias is None else torch.addmm(bias, pixels, whole)
        same = same.view(count, width, outputs)
        down = (values[1:, 1:-1] - values[:-1, 1:-1]) @ of_rows
        across = (between_columns[1:-1] @ of_columns).unflatten(-1, (2, outputs))
        both = ((between_columns[1:] - between_columns[:-1]) @ of_both).unflatten(-1, (2, 2, outputs))
        down = down.unflatten(-1, (2, outputs))
        # The pixel's four copies, each with the differences on its side.
        target = doubled[image, 2 * top : 2 * (top + count)].view(count, 2, width, 2, outputs)
        for row in (0, 1):
            of_row = same + down[row : row + count, :, row]
            for column in (0, 1):
                place = slice(column, column + width)
                copy = target[:, row, :, column]
                torch.add(across[:, place, column], both[row : row + count, place, row, column], out=copy)
                copy.add_(of_row)
    return doubled.permute(0, 3, 1, 2)
