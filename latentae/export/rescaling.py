"""Makes an export run in float16, and checks the written one: `latentae export --half-safe`."""

from __future__ import annotations

import torch
from torch import Tensor

from latentae.data import CenterCrop, DataSelection, ImageDataset, take_evenly
from latentae.data.decode import check_alpha, check_channels
from latentae.models import KLVAE, VQVAE
from latentae.models.half_safe import HalfSafeReport
from latentae.models.precision import Precision, Reference

_LARGEST_CROP = 128
_CHECKED = 2  # images that the written model decodes in float16


def read_images(
    model: KLVAE | VQVAE,
    selection: DataSelection,
    *,
    image_size: int | None = None,
    max_images: int = 8,
    alpha: bool = False,
) -> Tensor:
    """Reads images to measure a model's activations on: centre crops, [B, C, H, W] in [−1, 1].

    Args:
        model: says how many channels the images need.
        selection: the data; the images are spread evenly over them.
        image_size: side of the crops; None: the model's ``sample_size``, at most 128.
        max_images: how many.
        alpha: whether the images are RGBA, whose colours are resized by their alpha: see ``resize_window``.

    Raises:
        ValueError: there are no such data, or images are RGBA and the model does not take four channels.
        BrokenImageError: none of the images can be decoded.
    """
    channels = model.config.in_channels
    check_channels(channels)
    if alpha:
        check_alpha(channels)
    size = min(model.config.sample_size, _LARGEST_CROP) if image_size is None else image_size
    size = max(size, model.downsampling_factor)
    source = take_evenly(selection.open(), max_images)
    dataset = ImageDataset(source, CenterCrop(size, alpha=alpha), channels=channels)
    return torch.stack([dataset[0, index]["images"] for index in range(len(dataset))])


def check_written(
    model: KLVAE | VQVAE, reopened: KLVAE | VQVAE, images: Tensor, report: HalfSafeReport
) -> Precision | None:
    """Decodes some images in float16 with the model that was read back.

    Args:
        model: as it was written, in float32.
        reopened: what readers of the format get.
        images: [B, C, H, W] in [−1, 1].
        report: on the model.

    Returns:
        its difference from ``model`` in float64; None if float16 cannot hold the model.

    Raises:
        ValueError: it gives values that are not finite.
    """
    if report.obstacle is not None:
        return None
    precision = Reference.of(model, images[:_CHECKED]).compare(reopened, torch.float16)
    if precision.not_finite:
        raise ValueError(f"the export was not kept: read back, in float16 {precision}")
    return precision
