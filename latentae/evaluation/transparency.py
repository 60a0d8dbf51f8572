"""Metrics of images with transparency: of alpha, and of composites over black, white and random colours.

What a pixel looks like depends on its background, and the colours of transparent pixels are never seen. So
reconstructions are compared as composites. Composites are rounded to 8 bits, as all images that are measured.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from latentae.evaluation.metrics import psnr, to_images, to_uint8
from latentae.losses.compositing import BLACK, WHITE, composite
from latentae.models.decoders import downscale

Metric = Callable[[Tensor, Tensor], Tensor]

ALPHA_METRICS = ("alpha_psnr", "psnr_black", "psnr_white", "psnr_random")
"""The metrics that only images with transparency have."""

HIGHEST_PSNR = 60.0
"""dB. Opaque images have an exact alpha, and transparent ones an exact composite: their ratios are infinite.
They are limited as in libvmaf (6 · 8 bits + 12), so that means stay finite."""


def transparent_psnr(reconstruction: Tensor, images: Tensor) -> dict[str, Tensor]:
    """Returns PSNRs in dB, at most ``HIGHEST_PSNR``: metric → [B] float64.

    ``alpha_psnr`` is of alpha alone. ``psnr_black``, ``psnr_white`` and ``psnr_random`` are of composites
    over black, white and the image's random colour; ``psnr`` is the mean of those over black and white.

    Args:
        reconstruction, images: [B, 4, H, W] in [-1, 1] with straight alpha.
    """
    colours = random_colours(images)
    rows = {"alpha_psnr": psnr(reconstruction[:, 3:], images[:, 3:])}
    for name, background in (("black", BLACK), ("white", WHITE), ("random", colours)):
        rows[f"psnr_{name}"] = psnr(*(composite_8_bit(x, background) for x in (reconstruction, images)))
    rows = {name: row.clamp(max=HIGHEST_PSNR) for name, row in rows.items()}
    return {"psnr": (rows["psnr_black"] + rows["psnr_white"]) / 2, **rows}


def composite_psnr(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Returns the mean PSNR in dB of the composites over black and over white, [B]; arguments as above."""
    return transparent_psnr(reconstruction, images)["psnr"]


def downscaled_composite_psnr(reconstruction: Tensor, images: Tensor, upscale: int) -> Tensor:
    """Returns ``composite_psnr`` of a model that upscales, at the size of the images that its encoder saw."""
    return composite_psnr(*(downscale(x, upscale, alpha=True) for x in (reconstruction, images)))


def over_black_and_white(metric: Metric, reconstruction: Tensor, images: Tensor) -> Tensor:
    """Returns the mean of a metric over the composites over black and over white, [B]; arguments as above."""
    black, white = (metric(*pair) for pair in composites(reconstruction, images))
    return (black + white) / 2


def composites(reconstruction: Tensor, images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Returns reconstruction and images [B, 3, H, W] over black, and both over white; arguments as above."""
    greys = (BLACK, WHITE)
    return [(composite_8_bit(reconstruction, grey), composite_8_bit(images, grey)) for grey in greys]


def composite_8_bit(images: Tensor, background: Tensor | float) -> Tensor:
    """Returns composites [B, 3, H, W] in [-1, 1], rounded to 8 bits like the images before."""
    return to_images(to_uint8(composite(rounded(images), background)))


def rounded(images: Tensor) -> Tensor:
    """Returns images in [-1, 1] as they would be saved: clamped and rounded to 8 bits."""
    return to_images(to_uint8(images))


def random_colours(images: Tensor) -> Tensor:
    """Returns a random colour for each image, [B, 3] in [-1, 1], which depends on its visible pixels only.

    So it is the same for all models, in any order and on any number of devices.
    """
    drawn = [np.random.default_rng(number).uniform(-1, 1, 3) for number in _numbers(images)]
    return torch.from_numpy(np.stack(drawn)).to(images)


def feature_backgrounds(images: Tensor) -> Tensor:
    """Returns one background for each image, [B, 3] in [-1, 1]: black, white or its random colour.

    A distance between feature distributions takes one picture of each image. A third of the images has each
    kind of background.
    """
    kinds = torch.tensor([number % 3 for number in _numbers(images)], device=images.device)[:, None]
    colours = random_colours(images)
    plain = torch.where(kinds == 0, torch.full_like(colours, BLACK), torch.full_like(colours, WHITE))
    return torch.where(kinds == 2, colours, plain)


def over_backgrounds(pixels: Tensor, originals: Tensor) -> Tensor:
    """Returns composites [B, 3, H, W] uint8 of RGBA pixels over the originals' ``feature_backgrounds``."""
    return to_uint8(composite_8_bit(to_images(pixels), feature_backgrounds(originals)))


def _numbers(images: Tensor) -> list[int]:
    """Returns a number for each image, a function of what is visible of it."""
    own = rounded(images.detach().cpu())
    visible = to_uint8(torch.cat([composite(own, BLACK), own[:, 3:]], dim=1))
    return [zlib.crc32(image.contiguous().numpy().tobytes()) for image in visible]
