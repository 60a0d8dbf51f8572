"""3×3 convolutions with 4/9 of the multiplications: F(2×2, 3×3) of Lavin and Gray 2015, arXiv 1509.09308.

A tile of 4×4 input pixels d gives 2×2 output pixels y. In one dimension, with the kernel g,

    y = Aᵀ [(G g) ⊙ (Bᵀ d)],
    Bᵀ d = (d0 − d2, d1 + d2, d2 − d1, d1 − d3),
    G g = (g0, (g0 + g1 + g2)/2, (g0 − g1 + g2)/2, g2),
    Aᵀ m = (m0 + m1 + m2, m1 − m2 − m3)

and in two, the same along both sides. Sums over channels make ⊙ sixteen matrix products. All factors are 1
and 1/2, so that the result differs from a direct convolution by rounding alone, and is as exact in float32.
In bfloat16 it would be, by a factor of three, because the tiles are rounded before they are multiplied.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# With fewer channels the additions cost more than the multiplications that they save, and with fewer tiles
# the sixteen matrices cost more to read than the nine of the direct convolution.
_LEAST_CHANNELS = 128
_LEAST_TILES = 64
_DTYPES = (torch.float32, torch.float64)


def suits_winograd(conv: nn.Conv2d, inputs: Tensor) -> bool:
    """Returns whether ``winograd_conv`` computes this convolution of [B, C, H, W], and faster on a CPU.

    Its input and its output have the same size, so the same holds for the gradient of the input.
    """
    batch, _, height, width = inputs.shape
    return (
        inputs.dtype in _DTYPES
        and min(conv.in_channels, conv.out_channels) >= _LEAST_CHANNELS
        and batch * ((height + 1) // 2) * ((width + 1) // 2) >= _LEAST_TILES
        and (conv.kernel_size, conv.padding, conv.stride) == ((3, 3), (1, 1), (1, 1))
        and (conv.dilation, conv.groups, conv.padding_mode) == ((1, 1), 1, "zeros")
    )


def winograd_weight(weight: Tensor) -> Tensor:
    """Returns the sixteen matrices [16, C, C'] of a 3×3 weight [C', C, 3, 3]: G g Gᵀ."""
    for side in (2, 3):
        first, middle, last = weight.unbind(side)
        ends = first + last
        weight = torch.stack([first, (ends + middle) / 2, (ends - middle) / 2, last], side)
    return weight.permute(2, 3, 1, 0).flatten(0, 1).contiguous()


def winograd_conv(inputs: Tensor, weight: Tensor, bias: Tensor | None, *, activates: bool = False) -> Tensor:
    """Returns the 3×3 convolution with padding 1 of inputs [B, C, H, W], without gradients.

    It works on blocks of tiles that stay in a CPU's caches, and is made for inputs in channels last.

    Args:
        weight: [16, C, C'] from ``winograd_weight``.
        bias: [C'].
        activates: convolve silu(x).

    Returns:
        [B, C', H, W] in channels last.
    """
    return _in_blocks(inputs, weight, bias, _ORDER, activates)


def winograd_input_gradient(gradient: Tensor, weight: Tensor) -> Tensor:
    """Returns the gradient of the input of ``winograd_conv`` without activation.

    It is the convolution with the kernel turned by 180°, which exchanges the first and last transformed row
    and column: the same matrices serve, transposed.

    Args:
        gradient: [B, C', H, W] of the output.
        weight: [16, C, C'] of the convolution.

    Returns:
        [B, C, H, W] in channels last.
    """
    return _in_blocks(gradient, weight.transpose(1, 2), None, _TURNED, False)


_ORDER = (0, 1, 2, 3)
_TURNED = (3, 1, 2, 0)


def _in_blocks(
    inputs: Tensor, weight: Tensor, bias: Tensor | None, order: tuple[int, ...], activates: bool
) -> Tensor:
    batch, channels, height, width = inputs.shape
    rows, columns = (height + 1) // 2, (width + 1) // 2
    pixels = inputs.permute(0, 2, 3, 1)
    output = inputs.new_empty(batch, 2 * rows, 2 * columns, weight.shape[2])

    # As many tiles at once as half the number of channels, and no fewer than 128: measured.
    wanted = max(128, channels // 2)
    across = -(-columns // max(1, round(columns / wanted)))
    down = min(rows, max(1, wanted // across))
    images = min(batch, max(1, wanted // (down * across)))
    block = _Block(images * down * across, images * (2 * down + 2) * (2 * across + 2), weight, bias, order)
    for first in range(0, batch, images):
        here = slice(first, first + images)
        for top in range(0, rows, down):
            for left in range(0, columns, across):
                size = (min(down, rows - top), min(across, columns - left))
                block.convolve(pixels[here], output[here], (top, left), size, activates)

    output = output.permute(0, 3, 1, 2)
    if (height, width) != output.shape[2:]:
        output = output[:, :, :height, :width].contiguous(memory_format=torch.channels_last)
    return output


class _Block:
    """Buffers for a block of tiles, and the convolution of one.

    Args:
        tiles: the largest number.
        pixels: the largest number that these tiles cover.
        weight, bias: of the convolution, as ``winograd_conv`` has them.
        order: of the transformed rows and columns of the weight.
    """

    def __init__(
        self, tiles: int, pixels: int, weight: Tensor, bias: Tensor | None, order: tuple[int, ...]
    ) -> None:
        self.weight, self.bias, self.order = weight, bias, order
        _, channels, outputs = weight.shape
        self._pixels = weight.new_empty(pixels * channels)
        self._rows = weight.new_empty(2 * pixels * channels)  # four of half as many rows
        self._tiles = weight.new_empty(16 * tiles * channels)
        self._products = weight.new_empty(16 * tiles * outputs)
        self._sums = weight.new_empty(8 * tiles * outputs)

    def convolve(
        self,
        pixels: Tensor,
        output: Tensor,
        start: tuple[int, int],
        size: tuple[int, int],
        activates: bool,
    ) -> None:
        """Writes the output pixels of ``size`` tiles from tile ``start`` on.

        Args:
            pixels: [B, H, W, C].
            output: [B, 2·rows, 2·columns, C'].
        """
        _, channels, outputs = self.weight.shape
        (top, left), (down, across), batch = start, size, len(pixels)
        patch = self._read(pixels, start, size, activates)

        # Bᵀ d B: along the columns of pixels, then along the rows
        rows = _view(self._rows, 4, batch, down, 2 * across + 2, channels)
        parts = [patch[:, 0:-2:2], patch[:, 1:-1:2], patch[:, 2::2], patch[:, 3::2]]
        _transform(parts, [rows[place] for place in self.order])
        tiles = _view(self._tiles, 4, 4, batch, down, across, channels)
        parts = [rows[..., 0:-2:2, :], rows[..., 1:-1:2, :], rows[..., 2::2, :], rows[..., 3::2, :]]
        _transform(parts, [tiles[:, place] for place in self.order])

        products = _view(self._products, 4, 4, batch, down, across, outputs)
        torch.bmm(
            tiles.view(16, -1, channels), self.weight, out=products.view(16, batch * down * across, outputs)
        )
        if self.bias is not None:
            products[1, 1].add_(self.bias)  # which goes into all four pixels, with the factor 1

        # Aᵀ m A, in the same order, into the output
        sums = _view(self._sums, 2, 4, batch, down, across, outputs)
        first, second, third, fourth = (products[place] for place in self.order)
        torch.add(second, third, out=sums[0]).add_(first)
        torch.sub(second, third, out=sums[1]).sub_(fourth)
        target = output[:, 2 * top : 2 * (top + down), 2 * left : 2 * (left + across)]
        target = target.unflatten(1, (down, 2)).unflatten(3, (across, 2)).permute(4, 2, 0, 1, 3, 5)
        first, second, third, fourth = (sums[:, place] for place in self.order)
        spare = products[0, :2]
        torch.add(torch.add(second, third, out=spare), first, out=target[0])
        torch.sub(torch.sub(second, third, out=spare), fourth, out=target[1])

    def _read(self, pixels: Tensor, start: tuple[int, int], size: tuple[int, int], activates: bool) -> Tensor:
        """Returns the block's pixels [B, 2·down + 2, 2·across + 2, C] with the zeros of the padding."""
        patch = _view(self._pixels, len(pixels), *(2 * tiles + 2 for tiles in size), pixels.shape[3])
        inside, source = [], []
        for first, length, side in zip(start, patch.shape[1:3], pixels.shape[1:3], strict=True):
            begin, end = max(0, 2 * first - 1), min(side, 2 * first - 1 + length)
            source.append(slice(begin, end))
            inside.append(slice(begin - (2 * first - 1), end - (2 * first - 1)))
        here, there = patch[:, inside[0], inside[1]], pixels[:, source[0], source[1]]
        if here.shape != patch.shape:
            patch.zero_()
        if activates:
            torch.ops.aten.silu.out(there, out=here)
        else:
            here.copy_(there)
        return patch


def _view(buffer: Tensor, *shape: int) -> Tensor:
    """Returns the beginning of a buffer as a tensor of this shape."""
    size = 1
    for length in shape:
        size *= length
    return buffer[:size].view(shape)


def _transform(parts: list[Tensor], outputs: list[Tensor]) -> None:
    """Writes Bᵀ d for the tiles' four rows or columns d."""
    first, second, third, fourth = parts
    torch.sub(first, third, out=outputs[0])
    torch.add(second, third, out=outputs[1])
    torch.sub(third, second, out=outputs[2])
    torch.sub(second, fourth, out=outputs[3])
