"""Work in pieces: one image at a time, or overlapping tiles of one that is too large for memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin that cover ``length`` positions, each sharing at least ``overlap`` with the next.

    The last tile ends with the image, so that all are equally large: a narrow rest would be normalised and
    attended to on its own and come out unlike its neighbours.
    """
    last = max(0, length - tile)
    return [*range(0, last, tile - overlap), last]


def blend_windows(starts: list[int], length: int, tile: int, overlap: int) -> list[Tensor]:
    """For each tile of one axis the weight [tile] of its positions: ramps, and 1 in sum at every position.

    Args:
        starts: from ``tile_starts``.
        length, tile, overlap: the axis, a tile, and the ramp of a tile's edges, in positions.
    """
    tile = min(tile, length)
    ramp = torch.arange(1, tile + 1, dtype=torch.float64) / (overlap + 1)
    window = torch.minimum(ramp, ramp.flip(0)).clamp(max=1)
    total = torch.zeros(length, dtype=torch.float64)
    for start in starts:
        total[start : start + tile] += window
    return [window / total[start : start + tile] for start in starts]


def tiled(
    function: Function, inputs: Tensor, *, tile: int, overlap: int, input_step: int, output_step: int
) -> Tensor:
    """``function`` applied to overlapping tiles of inputs [B, C, H, W], the results cross-faded.

    Where ``function`` sees no further than a tile's overlap, the result is that of the whole input.

    Args:
        function: maps [B, C, i · n, i · m] to [B, D, o · n, o · m], with i and o the steps.
        tile, overlap: in positions of the latents; the overlap is smaller than the tile.
        input_step, output_step: how many rows of the inputs and of the outputs a position stands for.
    """
    sides = [side // input_step for side in inputs.shape[-2:]]
    rows, columns = (tile_starts(side, tile, overlap) for side in sides)
    row_windows, column_windows = (
        blend_windows(
            [start * output_step for start in starts],
            side * output_step,
            tile * output_step,
            overlap * output_step,
        )
        for starts, side in zip((rows, columns), sides, strict=True)
    )
    result: Tensor | None = None
    for top, row_window in zip(rows, row_windows, strict=True):
        for left, column_window in zip(columns, column_windows, strict=True):
            output = function(inputs[(..., *_square(top, left, tile, input_step))])
            if result is None:
                result = output.new_zeros(*output.shape[:2], *(side * output_step for side in sides))
            window = row_window[:, None] * column_window
            result[(..., *_square(top, left, tile, output_step))] += output * window.to(output)
    assert result is not None
    return result


def _square(top: int, left: int, tile: int, step: int) -> tuple[slice, slice]:
    """Rows and columns of a tile, ``step`` for each position."""
    return slice(top * step, (top + tile) * step), slice(left * step, (left + tile) * step)


class PiecewiseMixin:
    """Slicing and tiling under the names that diffusers' autoencoders have for them.

    Attributes:
        use_slicing: encode and decode the images of a batch one by one.
        use_tiling: encode and decode images larger than a tile in tiles.
        tile_sample_min_size, tile_latent_min_size: side of a tile, in pixels and in latents.
        tile_overlap_factor: share of a tile that it has in common with the next one.
    """

    use_slicing: bool
    use_tiling: bool
    tile_sample_min_size: int
    tile_latent_min_size: int
    tile_overlap_factor: float
    downsampling_factor: Any
    encode: Callable[..., Any]
    decode: Callable[..., Any]

    def enable_slicing(self) -> None:
        """Encode and decode the images of a batch one by one, which saves memory."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Encode and decode whole batches again."""
        self.use_slicing = False

    def enable_tiling(self, use_tiling: bool = True) -> None:
        """Encode and decode large images in overlapping tiles: memory no longer grows with the image.

        The tiles are as large as the images the model was trained on (``config.sample_size``). Each has its
        own statistics for normalisation and attention, so the result differs slightly from the whole image's.
        """
        self.use_tiling = use_tiling

    def disable_tiling(self) -> None:
        """Encode and decode images whole again."""
        self.use_tiling = False

    def tiled_encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """``encode`` with tiling on, whether it is or not."""
        return self._with_tiling(self.encode, x, return_dict)

    def tiled_decode(self, z: Tensor, return_dict: bool = True) -> Any:
        """``decode`` with tiling on, whether it is or not."""
        return self._with_tiling(self.decode, z, return_dict)

    def _with_tiling(self, method: Callable[..., Any], inputs: Tensor, return_dict: bool) -> Any:
        before = self.use_tiling
        self.use_tiling = True
        try:
            return method(inputs, return_dict=return_dict)
        finally:
            self.use_tiling = before

    def _start_whole(self, sample_size: int | tuple[int, int]) -> None:
        """Neither slicing nor tiling; tiles as large as the images trained on."""
        if not isinstance(sample_size, int):
            sample_size = max(sample_size)
        self.use_slicing = self.use_tiling = False
        self.tile_sample_min_size = sample_size
        self.tile_latent_min_size = sample_size // self.downsampling_factor
        self.tile_overlap_factor = 0.25

    def _encode_in_pieces(self, function: Function, images: Tensor) -> Tensor:
        """``function``, from images to latents, applied as slicing and tiling say."""
        tile = self.tile_sample_min_size // self.downsampling_factor
        return self._in_pieces(function, images, tile, self.downsampling_factor, 1)

    def _decode_in_pieces(self, function: Function, latents: Tensor) -> Tensor:
        """``function``, from latents to images, applied as slicing and tiling say."""
        return self._in_pieces(function, latents, self.tile_latent_min_size, 1, self.downsampling_factor)

    def _in_pieces(
        self, function: Function, inputs: Tensor, tile: int, input_step: int, output_step: int
    ) -> Tensor:
        if self.use_slicing and len(inputs) > 1:
            slices = [
                self._in_pieces(function, one, tile, input_step, output_step) for one in inputs.split(1)
            ]
            return torch.cat(slices)
        tile = max(1, tile)
        if not self.use_tiling or max(inputs.shape[-2:]) <= tile * input_step:
            return function(inputs)
        overlap = min(tile - 1, math.ceil(tile * self.tile_overlap_factor))
        return tiled(
            function, inputs, tile=tile, overlap=overlap, input_step=input_step, output_step=output_step
        )
