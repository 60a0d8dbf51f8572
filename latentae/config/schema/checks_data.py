"""What the images' sizes and values must be for the model, the losses and one another."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latentae.config.schema.run import RunConfig

SMALLEST_IMAGE = {
    "alex": 31,  # an 11×11 convolution of stride 4, then two 3×3 max-pools of stride 2, leave one pixel
    "vgg": 16,  # four max-pools that halve leave one pixel
}
"""Shortest image side, in pixels, that a perceptual trunk's deepest layer can still be computed on."""

SMALLEST_MEASURED = max(11, SMALLEST_IMAGE["alex"])
"""Shortest image side, in pixels, that can be measured: by SSIM in its window of 11, and LPIPS on AlexNet."""


def data_problems(config: RunConfig) -> list[str]:
    """Every contradiction about the images, one line each."""
    return [*_sizes(config), *_downscale(config), *_value_range(config)]


def _sizes(config: RunConfig) -> Iterator[str]:
    size = config.data.image_size
    yield from _size(config, "data.image_size", config.data.height_and_width, isinstance(size, int))
    for sides in config.data.resolutions or ():
        yield from _size(config, "data.resolutions", sides, is_number=False)


def _size(config: RunConfig, key: str, sides: tuple[int, int], is_number: bool) -> Iterator[str]:
    factor = config.model.downsampling_factor
    shown = sides[0] if is_number else list(sides)
    verb = "is" if key == "data.image_size" else "has"
    perceptual = config.loss.perceptual
    # Every run is measured at its end, and on no other size than this one.
    measured = SMALLEST_MEASURED if key == "data.image_size" else 1
    least = math.ceil(measured / factor) * factor
    if min(sides) < measured:
        yield (
            f"`{key}` {verb} {shown}, too small to measure: at its end a run needs {measured} "
            f"pixels a side (SSIM 11, LPIPS {SMALLEST_IMAGE['alex']}); use {least} or more"
        )
    elif perceptual is not None and min(sides) < SMALLEST_IMAGE[perceptual.trunk]:
        smallest = math.ceil(SMALLEST_IMAGE[perceptual.trunk] / factor) * factor
        yield (
            f"`{key}` {verb} {shown}, too small for the perceptual loss with `loss.perceptual.trunk: "
            f"{perceptual.trunk}`; use {smallest} or more, or loss.perceptual=null"
        )
    elif any(side % factor for side in sides):
        below = [max(side // factor * factor, least) for side in sides]
        above = [math.ceil(side / factor) * factor for side in sides]
        nearest = [sizes[0] if is_number else sizes for sizes in (below, above)]
        remedy = f"{nearest[0]} or {nearest[1]}" if nearest[0] != nearest[1] else f"{nearest[0]}"
        yield (
            f"`{key}` {verb} {shown}, not a multiple of {factor}, by which a model with "
            f"{len(config.model.block_out_channels)} `model.block_out_channels` shrinks it; use {remedy}"
        )


def _downscale(config: RunConfig) -> Iterator[str]:
    if config.data.downscale is not None and config.data.downscale[0] > config.data.downscale[1]:
        low, high = config.data.downscale
        yield f"`data.downscale` is [{low}, {high}], a range [low, high] turned round; use [{high}, {low}]"


def _value_range(config: RunConfig) -> Iterator[str]:
    if config.data.value_range is not None and config.data.value_range[0] >= config.data.value_range[1]:
        low, high = config.data.value_range
        yield (
            f"`data.value_range` is [{low}, {high}]; it must be [low, high] with low < high, the numbers of "
            "black and white"
        )
