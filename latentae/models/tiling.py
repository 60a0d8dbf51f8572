"""Work in pieces: one image at a time, or overlapping tiles of one that is too large for memory."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor

Function = Callable[[Tensor], Tensor]
Pair = tuple[int, int]


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
    function: Function,
    inputs: Tensor,
    *,
    tile: int | Pair,
    overlap: int | Pair,
    input_step: int,
    output_step: int,
) -> Tensor:
    """``function`` applied to overlapping tiles of inputs [B, C, H, W], the results cross-faded.

    Where ``function`` sees no further than a tile's overlap, the result is that of the whole input.

    Args:
        function: maps [B, C, i · n, i · m] to [B, D, o · n, o · m], with i and o the steps.
        tile, overlap: in positions of the latents, for both axes or (rows, columns); the overlap is smaller
            than the tile.
        input_step, output_step: how many rows of the inputs and of the outputs a position stands for.
    """
    sides = [side // input_step for side in inputs.shape[-2:]]
    tiles, overlaps = ((each, each) if isinstance(each, int) else each for each in (tile, overlap))
    rows, columns = map(tile_starts, sides, tiles, overlaps)
    row_windows, column_windows = (
        blend_windows(
            [start * output_step for start in starts],
            side * output_step,
            tile * output_step,
            overlap * output_step,
        )
        for starts, side, tile, overlap in zip((rows, columns), sides, tiles, overlaps, strict=True)
    )
    result: Tensor | None = None
    for top, row_window in zip(rows, row_windows, strict=True):
        for left, column_window in zip(columns, column_windows, strict=True):
            output = function(inputs[(..., *_square(top, left, tiles, input_step))])
            if result is None:
                result = output.new_zeros(*output.shape[:2], *(side * output_step for side in sides))
            window = row_window[:, None] * column_window
            result[(..., *_square(top, left, tiles, output_step))] += output * window.to(output)
    assert result is not None
    return result


def _square(top: int, left: int, tiles: Pair, step: int) -> tuple[slice, slice]:
    """Rows and columns of a tile, ``step`` for each position."""
    height, width = tiles
    return slice(top * step, (top + height) * step), slice(left * step, (left + width) * step)


class PiecewiseMixin:
    """Slicing and tiling under the names that diffusers' autoencoders have for them.

    Attributes:
        use_slicing: encode and decode the images of a batch one by one.
        use_tiling: encode and decode images larger than a tile in tiles.
        tile_sample_min_size, tile_latent_min_size: side of a tile, in pixels and in latents.
        tile_overlap_factor: share of a tile that it has in common with the next one.
        tile_sample_min_height, tile_sample_min_width: the tile's sides in pixels, each in place of
            ``tile_sample_min_size`` and ``tile_latent_min_size``; None where those decide.
        tile_sample_stride_height, tile_sample_stride_width: pixels from the start of a tile to the start of
            the next one, in place of ``tile_overlap_factor``; None where that decides.
    """

    use_slicing: bool
    use_tiling: bool
    tile_sample_min_size: int
    tile_latent_min_size: int
    tile_overlap_factor: float
    tile_sample_min_height: int | None = None
    tile_sample_min_width: int | None = None
    tile_sample_stride_height: float | None = None
    tile_sample_stride_width: float | None = None
    downsampling_factor: Any
    encode: Callable[..., Any]
    decode: Callable[..., Any]
    _encode_whole: Function
    _check_images: Callable[[Tensor], None]
    _pad: Function

    def enable_slicing(self) -> None:
        """Encode and decode the images of a batch one by one, which saves memory."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Encode and decode whole batches again."""
        self.use_slicing = False

    def enable_tiling(
        self,
        tile_sample_min_height: int | None = None,
        tile_sample_min_width: int | None = None,
        tile_sample_stride_height: float | None = None,
        tile_sample_stride_width: float | None = None,
        *,
        tile_sample_min_size: int | None = None,
        tile_overlap_factor: float | None = None,
        use_tiling: bool = True,
    ) -> None:
        """Encode and decode large images in overlapping tiles: memory no longer grows with the image.

        The tiles are as large as the images the model was trained on (``config.sample_size``), unless an
        argument says otherwise. Each has its own statistics for normalisation and attention, so the result
        differs slightly from the whole image's.

        An argument that is left out keeps its present value. Sizes and strides are rounded down to whole
        latents. ``enable_tiling(False)`` turns tiling off, as in older versions of diffusers.

        Args:
            tile_sample_min_height, tile_sample_min_width: the tile's sides, in pixels.
            tile_sample_stride_height, tile_sample_stride_width: pixels from the start of a tile to the start
                of the next one: at most the tile's side.
            tile_sample_min_size: the side of square tiles, in pixels.
            tile_overlap_factor: share of a tile that it has in common with the next one, in [0, 1).
            use_tiling: whether to tile at all.

        Raises:
            ValueError: a side or a stride below one latent, a stride longer than the tile, a factor outside
                of [0, 1), or ``tile_sample_min_size`` beside a height or a width.
        """
        if isinstance(tile_sample_min_height, bool):
            use_tiling, tile_sample_min_height = tile_sample_min_height, None
        given = {
            "tile_sample_min_height": tile_sample_min_height,
            "tile_sample_min_width": tile_sample_min_width,
            "tile_sample_stride_height": tile_sample_stride_height,
            "tile_sample_stride_width": tile_sample_stride_width,
            "tile_sample_min_size": tile_sample_min_size,
            "tile_overlap_factor": tile_overlap_factor,
        }
        values: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        self._check_tiles(values)
        if tile_sample_min_size is not None:
            values["tile_latent_min_size"] = tile_sample_min_size // self.downsampling_factor
            values |= {"tile_sample_min_height": None, "tile_sample_min_width": None}
        if tile_overlap_factor is not None:
            values = {"tile_sample_stride_height": None, "tile_sample_stride_width": None} | values
        for name, value in values.items():
            setattr(self, name, value)
        self.use_tiling = use_tiling

    def disable_tiling(self) -> None:
        """Encode and decode images whole again."""
        self.use_tiling = False

    @apply_forward_hook
    def tiled_encode(self, x: Tensor, return_dict: bool | None = None) -> Any:
        """What the encoder makes of images [B, C, H, W] with tiling on, whether it is or not.

        A KL-VAE's are the moments [B, 2c, h, w] that ``DiagonalGaussianDistribution`` takes, a VQ model's
        the latents [B, c, h, w].

        Args:
            x: images as ``encode`` takes them.
            return_dict: deprecated, as in diffusers, which removes it at 1.0. With it the result is that of
                ``encode``.
        """
        if return_dict is not None:
            warnings.warn(
                "return_dict is deprecated for tiled_encode: leave it out for a tensor, or call encode after "
                "enable_tiling()",
                FutureWarning,
                stacklevel=2,
            )
            return self._with_tiling(lambda: self.encode(x, return_dict=return_dict))
        return self._encode_tiled(x)

    @apply_forward_hook
    def _encode_tiled(self, images: Tensor) -> Tensor:
        self._check_images(images)
        return self._with_tiling(lambda: self._encode_in_pieces(self._encode_whole, self._pad(images)))

    def tiled_decode(self, z: Tensor, return_dict: bool = True) -> Any:
        """``decode`` with tiling on, whether it is or not."""
        return self._with_tiling(lambda: self.decode(z, return_dict=return_dict))

    def _with_tiling(self, work: Callable[[], Any]) -> Any:
        before = self.use_tiling
        self.use_tiling = True
        try:
            return work()
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

    def _check_tiles(self, given: dict[str, Any]) -> None:
        """Raises ValueError for tiles that ``enable_tiling`` cannot make, before anything has changed."""
        factor = self.downsampling_factor
        for name, value in given.items():
            if name == "tile_overlap_factor":
                if not 0 <= value < 1:
                    raise ValueError(f"{name} is {value}, but must be in [0, 1)")
            elif value < factor:
                raise ValueError(f"{name} is {value}, but must be at least the {factor} pixels of one latent")
        for axis in ("height", "width"):
            side_name, stride_name = f"tile_sample_min_{axis}", f"tile_sample_stride_{axis}"
            if side_name in given and "tile_sample_min_size" in given:
                raise ValueError(f"tile_sample_min_size and {side_name} are both given: choose one of them")
            side = given.get("tile_sample_min_size") or given.get(side_name) or getattr(self, side_name)
            side = self.tile_sample_min_size if side is None else side
            stride = given.get(stride_name)
            if stride is None and "tile_overlap_factor" not in given:
                stride = getattr(self, stride_name)
            if stride is not None and stride > side:
                raise ValueError(
                    f"{stride_name} is {stride}, but must be at most the tile's {axis} of {side} pixels, or "
                    "tiles leave gaps"
                )

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
        if not self.use_tiling:
            return function(inputs)
        height, top_overlap = self._axis(tile, self.tile_sample_min_height, self.tile_sample_stride_height)
        width, left_overlap = self._axis(tile, self.tile_sample_min_width, self.tile_sample_stride_width)
        if inputs.shape[-2] <= height * input_step and inputs.shape[-1] <= width * input_step:
            return function(inputs)
        return tiled(
            function,
            inputs,
            tile=(height, width),
            overlap=(top_overlap, left_overlap),
            input_step=input_step,
            output_step=output_step,
        )

    def _axis(self, square: int, side: int | None, stride: float | None) -> tuple[int, int]:
        """A tile's length along an axis and what it has in common with the next one, in latents.

        Args:
            square: the side of square tiles, in latents.
            side, stride: the axis's own, in pixels, or None.
        """
        tile = max(1, square if side is None else int(side) // self.downsampling_factor)
        if stride is None:
            return tile, min(tile - 1, math.ceil(tile * self.tile_overlap_factor))
        return tile, max(0, tile - max(1, int(stride) // self.downsampling_factor))
