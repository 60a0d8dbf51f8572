"""Doubling by repetition and a 3×3 convolution, in one transposed convolution at 4/9 of the work."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def doubled_conv(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[B, C', 2H, 2W] of [B, C, H, W]: each pixel four times, then a 3×3 convolution padded by 1.

    Of a 3×3 window over doubled pixels at most 2×2 are different ones. So the window's weights can be added
    up by the pixel they meet: a 4×4 kernel that is the 3×3 one convolved with a 2×2 of ones, with stride 2.
    It is the same function but for rounding, and the doubled tensor is never there. It can be differentiated
    once.

    Args:
        weight: [C', C, 3, 3].
        bias: [C'].
    """
    device = inputs.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    return _DoubledConv.apply(inputs, weight, bias, dtype)


class _DoubledConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(inputs, weight)  # not the kernel, which is larger and made quickly
        ctx.dtype, ctx.bias_size = dtype, None if bias is None else list(bias.shape)
        bias = None if bias is None else bias.to(dtype)
        kernel = doubling_kernel(weight.to(dtype))
        return F.conv_transpose2d(inputs.to(dtype), kernel, bias, stride=2, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
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
        of_weight = None if of_kernel is None else _weight_gradient(of_kernel).to(weight.dtype)
        of_inputs = None if of_inputs is None else of_inputs.to(inputs.dtype)
        return of_inputs, of_weight, None if of_bias is None else of_bias.to(weight.dtype), None


def doubling_kernel(weight: Tensor) -> Tensor:
    """Kernel [C, C', 4, 4] of the transposed convolution, of the one [C', C, 3, 3] that follows doubling."""
    return _sums_of_neighbours(F.pad(weight.flip(2, 3).transpose(0, 1), (1, 1, 1, 1)))


def _weight_gradient(of_kernel: Tensor) -> Tensor:
    """What ``doubling_kernel`` makes of a gradient backwards: the sums again, of which the padding's go."""
    return _sums_of_neighbours(of_kernel).transpose(0, 1).flip(2, 3)


def _sums_of_neighbours(values: Tensor) -> Tensor:
    values = values[:, :, :-1] + values[:, :, 1:]
    return values[..., :-1] + values[..., 1:]
