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

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# With fewer channels the additions cost more than the multiplications that they save, and with fewer tiles
# the sixteen matrices cost more to read than the nine of the direct convolution.
_LEAST_CHANNELS = 128
_LEAST_TILES = 128
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
    """Returns the sixteen matrices [16, C, C'] of a 3×3 weight [C', C, 3, 3]: G g Gᵀ.

    It takes a few thousandths of a second for 512 channels, so that nothing needs to be kept.
    """
    outputs, channels = weight.shape[:2]
    # As one matrix product, because sums of slices would read memory in steps of nine values.
    matrices = torch.mm(_transform_matrix(weight), weight.reshape(-1, 9).t())
    return matrices.view(16, outputs, channels).transpose(1, 2)


def _transform_matrix(like: Tensor) -> Tensor:
    """Returns the matrix [16, 9] that maps g to G g Gᵀ."""
    side = like.new_tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
    return torch.kron(side, side)


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


def winograd_weight_gradient(inputs: Tensor, gradient: Tensor) -> Tensor:
    """Returns the gradient of the 3×3 weight of a convolution with padding 1.

    It is Gᵀ (Σ (Bᵀ d B) ⊙ (A ∂y Aᵀ)) G, a sum over all tiles: sixteen matrix products again.

    Args:
        inputs: [B, C, H, W] that were convolved.
        gradient: [B, C', H, W] of the output.

    Returns:
        [C', C, 3, 3].
    """
    channels, outputs = inputs.shape[1], gradient.shape[1]
    total = inputs.new_zeros(16, outputs, channels)
    grid = _Grid.of(inputs, _tiles_at_once(max(channels, outputs)))
    block = _Block(grid, total.transpose(1, 2), None, _ORDER)
    pixels, slopes = inputs.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1)
    for images, start, size in grid:
        block.add_products(pixels[images], slopes[images], start, size, total)
    weight = torch.mm(total.view(16, -1).t(), _transform_matrix(total))
    return weight.view(outputs, channels, 3, 3)


_ORDER = (0, 1, 2, 3)
_TURNED = (3, 1, 2, 0)


def _in_blocks(
    inputs: Tensor, weight: Tensor, bias: Tensor | None, order: tuple[int, ...], activates: bool
) -> Tensor:
    batch, channels, height, width = inputs.shape
    pixels = inputs.permute(0, 2, 3, 1)
    grid = _Grid.of(inputs, _tiles_at_once(channels))
    output = inputs.new_empty(batch, 2 * grid.rows, 2 * grid.columns, weight.shape[2])
    block = _Block(grid, weight, bias, order)
    for images, start, size in grid:
        block.convolve(pixels[images], output[images], start, size, activates)
    output = output.permute(0, 3, 1, 2)
    if (height, width) != output.shape[2:]:
        output = output[:, :, :height, :width].contiguous(memory_format=torch.channels_last)
    return output


def _tiles_at_once(channels: int) -> int:
    """Returns how many tiles are best transformed and multiplied at once: measured."""
    return max(128, channels // 2)


@dataclass(frozen=True)
class _Grid:
    """The tiles of a batch, and the largest block of them: whole images, or rows and columns of one."""

    batch: int
    rows: int
    columns: int
    images: int
    down: int
    across: int

    @classmethod
    def of(cls, inputs: Tensor, wanted: int) -> _Grid:
        """Returns the tiles of inputs [B, C, H, W] in blocks of about ``wanted``."""
        batch, _, height, width = inputs.shape
        rows, columns = (height + 1) // 2, (width + 1) // 2
        across = -(-columns // max(1, round(columns / wanted)))
        down = min(rows, max(1, wanted // across))
        return cls(batch, rows, columns, min(batch, max(1, wanted // (down * across))), down, across)

    @property
    def tiles(self) -> int:
        """The number of tiles of the largest block."""
        return self.images * self.down * self.across

    @property
    def pixels(self) -> int:
        """The number of pixels that the tiles of the largest block cover."""
        return self.images * (2 * self.down + 2) * (2 * self.across + 2)

    def __iter__(self) -> Iterator[tuple[slice, tuple[int, int], tuple[int, int]]]:
        """Yields for each block its images, its first row and column, and its rows and columns."""
        for first in range(0, self.batch, self.images):
            for top in range(0, self.rows, self.down):
                for left in range(0, self.columns, self.across):
                    size = (min(self.down, self.rows - top), min(self.across, self.columns - left))
                    yield slice(first, first + self.images), (top, left), size


class _Block:
    """Buffers for a block of tiles, and the convolution of one.

    Args:
        grid: of all blocks.
        weight, bias: of the convolution, as ``winograd_conv`` has them.
        order: of the transformed rows and columns of the weight.
    """

    def __init__(self, grid: _Grid, weight: Tensor, bias: Tensor | None, order: tuple[int, ...]) -> None:
        tiles, pixels = grid.tiles, grid.pixels
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
        outputs = self.weight.shape[2]
        (top, left), (down, across), batch = start, size, len(pixels)
        tiles = self._transformed(pixels, start, size, activates)
        products = _view(self._products, 4, 4, batch, down, across, outputs)
        torch.bmm(tiles.flatten(2, 4).flatten(0, 1), self.weight, out=products.view(16, -1, outputs))
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

    def add_products(
        self, pixels: Tensor, slopes: Tensor, start: tuple[int, int], size: tuple[int, int], total: Tensor
    ) -> None:
        """Adds (A ∂y Aᵀ)ᵀ (Bᵀ d B) of the tiles to ``total`` [16, C', C].

        Args:
            pixels: [B, H, W, C].
            slopes: [B, H, W, C'], ∂y.
        """
        outputs = total.shape[1]
        (top, left), (down, across), batch = start, size, len(pixels)
        tiles = self._transformed(pixels, start, size, False)
        part = slopes[:, 2 * top : 2 * (top + down), 2 * left : 2 * (left + across)]
        whole = _view(self._sums, batch, 2 * down, 2 * across, outputs)
        if part.shape != whole.shape:
            whole.zero_()
        whole[:, : part.shape[1], : part.shape[2]].copy_(part)
        products = _view(self._products, 4, 4, batch, down, across, outputs)
        # A ∂y, into the first of the four places of each column, then (A ∂y) Aᵀ
        for column in (0, 1):
            first, second = whole[:, 0::2, column::2], whole[:, 1::2, column::2]
            _spread(first, second, [products[place, 3 * column] for place in range(4)])
        first, second = products[:, 0], products[:, 3]
        torch.add(first, second, out=products[:, 1])
        torch.sub(first, second, out=products[:, 2])
        second.neg_()
        total.baddbmm_(products.view(16, -1, outputs).transpose(1, 2), tiles.flatten(2, 4).flatten(0, 1))

    def _transformed(
        self, pixels: Tensor, start: tuple[int, int], size: tuple[int, int], activates: bool
    ) -> Tensor:
        """Returns Bᵀ d B of the tiles, [4, 4, B, down, across, C]."""
        (down, across), batch, channels = size, len(pixels), pixels.shape[3]
        patch = self._read(pixels, start, size, activates)
        # along the columns of pixels, then along the rows
        rows = _view(self._rows, 4, batch, down, 2 * across + 2, channels)
        parts = [patch[:, 0:-2:2], patch[:, 1:-1:2], patch[:, 2::2], patch[:, 3::2]]
        _transform(parts, [rows[place] for place in self.order])
        tiles = _view(self._tiles, 4, 4, batch, down, across, channels)
        parts = [rows[..., 0:-2:2, :], rows[..., 1:-1:2, :], rows[..., 2::2, :], rows[..., 3::2, :]]
        _transform(parts, [tiles[:, place] for place in self.order])
        return tiles

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


def _spread(first: Tensor, second: Tensor, outputs: list[Tensor]) -> None:
    """Writes A ∂y for the two rows or columns ∂y."""
    outputs[0].copy_(first)
    torch.add(first, second, out=outputs[1])
    torch.sub(first, second, out=outputs[2])
    torch.neg(second, out=outputs[3])
