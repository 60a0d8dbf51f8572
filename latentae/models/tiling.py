"""Encoding and decoding in pieces: image by image, in strips with the exact result, or in blended tiles."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from latentae.devices import is_exporting
from latentae.models.exact_tiling import ExactTiling, program_of

Function = Callable[[Tensor], Tensor]
Pair = tuple[int, int]
TilingMode = Literal["exact", "blended"]


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Returns the starts of tiles that cover ``length`` positions and overlap by at least ``overlap``.

    The last tile ends with the image, so that all tiles have the same size. A narrow remainder would have
    group statistics and attention of its own, and would look unlike its neighbours.
    """
    last = max(0, length - tile)
    return [*range(0, last, tile - overlap), last]


def blend_windows(starts: list[int], length: int, tile: int, overlap: int) -> list[Tensor]:
    """Returns one window [tile] per tile of an axis: linear ramps that sum to 1 at every position.

    Args:
        starts: from ``tile_starts``.
        length, tile, overlap: the lengths of the axis, of a tile, and of the ramp at its edges, in positions.
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
    """Applies ``function`` to overlapping tiles of inputs [B, C, H, W] and cross-fades the results.

    If an output of ``function`` depends on its own latent position only, the result equals function(inputs).

    Args:
        function: maps [B, C, i · n, i · m] to [B, D, o · n, o · m] for any n and m latent positions; i and o
            are the steps.
        tile, overlap: in latent positions, for both axes or (rows, columns); the overlap is smaller than the
            tile.
        input_step, output_step: rows of the inputs and of the outputs per latent position.
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

    # Every tile, multiplied by its window, is added to the result.
    result: Tensor | None = None
    for top, row_window in zip(rows, row_windows, strict=True):
        for left, column_window in zip(columns, column_windows, strict=True):
            output = function(inputs[(..., *_tile_slices(top, left, tiles, input_step))])
            if result is None:
                result = output.new_zeros(*output.shape[:2], *(side * output_step for side in sides))
            window = row_window[:, None] * column_window
            result[(..., *_tile_slices(top, left, tiles, output_step))] += output * window.to(output)
    assert result is not None
    return result


def _tile_slices(top: int, left: int, tiles: Pair, step: int) -> tuple[slice, slice]:
    """Returns the rows and columns of a tile, ``step`` per latent position."""
    height, width = tiles
    return slice(top * step, (top + height) * step), slice(left * step, (left + width) * step)


class TilingMixin:
    """Slicing and tiling under the names that diffusers' autoencoders use.

    Attributes:
        use_slicing: encode and decode the images of a batch one by one.
        use_tiling: encode and decode large images in pieces.
        tiling_mode: ``exact`` or ``blended``; see ``enable_tiling``.
        exact_tiling: settings of exact tiling.
        tile_latent_min_size: ``tile_sample_min_size`` in latents. The other attributes are the arguments of
            ``enable_tiling``; None means that the square size, or the overlap factor, decides.
    """

    use_slicing: bool
    use_tiling: bool
    tiling_mode: TilingMode = "exact"
    exact_tiling = ExactTiling()
    tile_sample_min_size: int
    tile_latent_min_size: int
    tile_overlap_factor: float
    tile_sample_min_height: int | None = None
    tile_sample_min_width: int | None = None
    tile_sample_stride_height: float | None = None
    tile_sample_stride_width: float | None = None
    downsampling_factor: Any
    upscale: Any
    encoder: Any
    decoder: Any
    encode: Callable[..., Any]
    decode: Callable[..., Any]
    _encode_whole: Function  # one forward through the encoder, without slices or tiles
    _decode_whole: Function
    _check_images: Callable[[Tensor], None]
    _pad: Function

    def enable_slicing(self) -> None:
        """Encodes and decodes the images of a batch one by one from now on, which saves memory."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Encodes and decodes whole batches again."""
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
        mode: TilingMode | None = None,
        memory: int | None = None,
        storage_dtype: torch.dtype | None = None,
        offload: bool = False,
        use_tiling: bool = True,
    ) -> None:
        """Encodes and decodes large images with bounded memory from now on.

        ``exact`` tiling gives the result of the whole image, up to rounding: the image goes through the model
        layer by layer, in strips, and normalisation and attention see all of it. It has no gradients. An
        image that fits into the memory is encoded or decoded as without tiling. ``blended`` tiling is that of
        diffusers: overlapping tiles, each with its own statistics for normalisation and attention, are
        cross-faded, so the result differs from that without tiles. By default a tile has the size of the
        training images (``config.sample_size``).

        Arguments of blended tiling that are left out keep their current values; those of exact tiling get
        their defaults. Sizes and strides are rounded down to whole latents. ``enable_tiling(False)`` turns
        tiling off, as in older versions of diffusers.

        Args:
            tile_sample_min_height, tile_sample_min_width: the tile's sides, in pixels.
            tile_sample_stride_height, tile_sample_stride_width: pixels from the start of one tile to the
                start of the next, at most the tile's side.
            tile_sample_min_size: the side of square tiles, in pixels.
            tile_overlap_factor: fraction of a tile that overlaps with the next one, in [0, 1).
            mode: ``exact`` or ``blended``; None: ``blended`` if there are arguments for tiles, else
                ``exact``.
            memory, storage_dtype, offload: of exact tiling; see ``ExactTiling``.
            use_tiling: False turns tiling off.

        Raises:
            ValueError: a side or stride below one latent, a stride longer than the tile, a factor outside [0,
                1), ``tile_sample_min_size`` together with a height or width, arguments of both modes, or a
                model with a module that exact tiling does not know.
        """
        if isinstance(tile_sample_min_height, bool):
            use_tiling, tile_sample_min_height = tile_sample_min_height, None
        if not use_tiling:
            self.use_tiling = False
            return
        given = {
            "tile_sample_min_height": tile_sample_min_height,
            "tile_sample_min_width": tile_sample_min_width,
            "tile_sample_stride_height": tile_sample_stride_height,
            "tile_sample_stride_width": tile_sample_stride_width,
            "tile_sample_min_size": tile_sample_min_size,
            "tile_overlap_factor": tile_overlap_factor,
        }
        values: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        exact = {"memory": memory, "storage_dtype": storage_dtype, "offload": offload or None}
        mode = self._check_mode(mode, [*values], [name for name in exact if exact[name] is not None])
        settings = ExactTiling(memory, storage_dtype, offload)
        self._check_tiles(values)
        if tile_sample_min_size is not None:
            values["tile_latent_min_size"] = tile_sample_min_size // self.downsampling_factor
            values |= {"tile_sample_min_height": None, "tile_sample_min_width": None}
        if tile_overlap_factor is not None:
            values = {"tile_sample_stride_height": None, "tile_sample_stride_width": None} | values
        for name, value in values.items():
            setattr(self, name, value)
        self.tiling_mode, self.exact_tiling = mode, settings
        self.use_tiling = True

    def disable_tiling(self) -> None:
        """Encodes and decodes whole images again."""
        self.use_tiling = False

    @apply_forward_hook
    def tiled_encode(self, x: Tensor, return_dict: bool | None = None) -> Any:
        """Encodes images [B, C, H, W] as after ``enable_tiling``, even if tiling is off.

        Returns the encoder's output: of a KL-VAE the moments [B, 2c, h, w] that
        ``DiagonalGaussianDistribution`` takes, of other models the latents [B, c, h, w].

        Args:
            x: images as ``encode`` takes them.
            return_dict: deprecated, as in diffusers, which removes it in 1.0. If given, the result is that of
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
        return self._with_tiling(lambda: self._encode_in_pieces(self._pad(images)))

    def tiled_decode(self, z: Tensor, return_dict: bool = True) -> Any:
        """``decode`` as after ``enable_tiling``, even if tiling is off."""
        return self._with_tiling(lambda: self.decode(z, return_dict=return_dict))

    def _with_tiling(self, work: Callable[[], Any]) -> Any:
        before = self.use_tiling
        self.use_tiling = True
        try:
            return work()
        finally:
            self.use_tiling = before

    def _reset_tiling(self, sample_size: int | tuple[int, int]) -> None:
        """Turns slicing and tiling off, with tiles of the size of the training images."""
        if not isinstance(sample_size, int):
            sample_size = max(sample_size)
        self.use_slicing = self.use_tiling = False
        self.tile_sample_min_size = sample_size
        self.tile_latent_min_size = sample_size // self.downsampling_factor
        self.tile_overlap_factor = 0.25

    def _check_mode(self, mode: TilingMode | None, blended: list[str], exact: list[str]) -> TilingMode:
        """Returns the mode that given arguments mean.

        Raises:
            ValueError: an unknown mode, arguments of the other mode, or a module that exact tiling does not
                know.
        """
        if mode not in (None, "exact", "blended"):
            raise ValueError(f"mode is {mode!r}, but must be 'exact' or 'blended'")
        mode = mode or ("blended" if blended else "exact")
        if others := exact if mode == "blended" else blended:
            other = "exact" if mode == "blended" else "blended"
            raise ValueError(f"{others[0]} is an argument of mode={other!r}, and the mode is {mode!r}")
        if mode == "exact":
            program_of([*self._encoder_modules(), *self._decoder_modules()])
        return mode

    def _check_tiles(self, given: dict[str, Any]) -> None:
        """Raises ValueError for tiles that ``enable_tiling`` cannot make; nothing is changed yet."""
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

    def _encode_in_pieces(self, images: Tensor) -> Tensor:
        """Applies ``_encode_whole`` to padded images, in slices and tiles if these are on."""
        if self.use_tiling and self.tiling_mode == "exact":
            return self._exactly(self._encode_whole, self._encoder_modules(), images)
        tile = self.tile_sample_min_size // self.downsampling_factor
        return self._in_pieces(self._encode_whole, images, tile, self.downsampling_factor, 1)

    def _decode_in_pieces(self, latents: Tensor, size: Pair | None = None) -> Tensor:
        """Applies ``_decode_whole`` to latents, in slices and tiles if these are on.

        Args:
            size: (H, W) of the images that were encoded; padding beyond them, times ``upscale``, is cropped.
        """
        step = self.downsampling_factor * self.upscale
        if self.use_tiling and self.tiling_mode == "exact":
            images = self._exactly(self._decode_whole, self._decoder_modules(), latents)
        else:
            images = self._in_pieces(self._decode_whole, latents, self.tile_latent_min_size, 1, step)
        return images if size is None else images[..., : size[0] * self.upscale, : size[1] * self.upscale]

    def _encoder_modules(self) -> list[nn.Module]:
        """Returns the modules that images go through, one after the other."""
        return _present(self.encoder, getattr(self, "quant_conv", None))

    def _decoder_modules(self) -> list[nn.Module]:
        """Returns the modules that latents go through, one after the other."""
        return _present(getattr(self, "post_quant_conv", None), self.decoder)

    def _exactly(self, function: Function, modules: list[nn.Module], inputs: Tensor) -> Tensor:
        if is_exporting():
            return function(inputs)
        images = inputs.split(1) if self.use_slicing else (inputs,)
        return torch.cat([self.exact_tiling.apply(modules, each, function) for each in images])

    def _in_pieces(
        self, function: Function, inputs: Tensor, tile: int, input_step: int, output_step: int
    ) -> Tensor:
        if self.use_slicing and len(inputs) > 1:
            return torch.cat(
                [self._in_pieces(function, one, tile, input_step, output_step) for one in inputs.split(1)]
            )
        if not self.use_tiling:
            return function(inputs)
        height, top = self._tile_and_overlap(
            tile, self.tile_sample_min_height, self.tile_sample_stride_height
        )
        width, left = self._tile_and_overlap(tile, self.tile_sample_min_width, self.tile_sample_stride_width)
        if inputs.shape[-2] <= height * input_step and inputs.shape[-1] <= width * input_step:
            return function(inputs)
        steps = {"input_step": input_step, "output_step": output_step}
        return tiled(function, inputs, tile=(height, width), overlap=(top, left), **steps)

    def _tile_and_overlap(self, square: int, side: int | None, stride: float | None) -> Pair:
        """Returns the length of a tile along an axis and its overlap with the next one, in latents.

        Args:
            square: the side of square tiles, in latents.
            side, stride: the settings of this axis, in pixels, or None.
        """
        tile = max(1, square if side is None else int(side) // self.downsampling_factor)
        if stride is None:
            return tile, min(tile - 1, math.ceil(tile * self.tile_overlap_factor))
        return tile, max(0, tile - max(1, int(stride) // self.downsampling_factor))


def _present(*modules: nn.Module | None) -> list[nn.Module]:
    return [module for module in modules if module is not None]
