"""The images of a run: opened, checked, and those that are shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from latentae import build
from latentae.config import RunConfig
from latentae.data import ImageDataset, Sources, check_images, without_broken
from latentae.training.broken import BrokenImages

_PREVIEW_IMAGES = 8


@dataclass
class RunImages:
    """What a run trains on, measures on and shows.

    Attributes:
        training, validation: datasets; no image is in both.
        preview: [B, C, H, W] in [−1, 1], some validation images spread over all.
        broken: the images that could not be read so far.
    """

    training: ImageDataset
    validation: ImageDataset
    preview: Tensor
    broken: BrokenImages


def open_images(
    config: RunConfig, *, gather: Callable[[list[str]], list[str]], say: Callable[[str], None]
) -> RunImages:
    """Opens the data and looks for broken images; every rank must call it.

    Args:
        gather: joins the lists of all ranks into one, the same on each.
        say: told of broken images.

    Raises:
        ValueError: no such data, or too many broken images.
    """
    data, channels = config.data, config.model.in_channels
    sources = build.build_sources(data)
    validation_source, unreadable = without_broken(sources.validation, channels)
    broken = BrokenImages(data.max_broken, gather)
    broken.add([*unreadable, *check_images(sources.train, channels, data.check_images)])
    sentence = broken.report()
    if sentence is not None:
        say(sentence)
    training, validation = build.build_datasets(
        Sources(sources.train, validation_source), data, channels, config.seed
    )
    count = min(_PREVIEW_IMAGES, len(validation))
    spread = [i * len(validation) // count for i in range(count)]
    preview = torch.stack([validation[0, i]["images"] for i in spread])
    return RunImages(training, validation, preview, broken)
