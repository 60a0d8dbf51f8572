"""The images of a run: opened, checked, and those that are shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from latentae import build, distributed
from latentae.config import RunConfig
from latentae.data import (
    HeldOut,
    ImageDataset,
    ImageStream,
    StreamSources,
    check_images,
    describe_size,
    without_broken,
)
from latentae.training.broken import BrokenImages

_PREVIEW_IMAGES = 8


@dataclass
class RunImages:
    """What a run trains on, measures on and shows.

    Attributes:
        training, validation: datasets, or a stream to train on; no image is in both.
        preview: [B, C, H, W] in [−1, 1], some validation images spread over all.
        broken: the images that could not be read so far.
        places: lines that say which splits they are, where they lie and what was left out.
        held_out: what keeps validation images out of training when there are more images.
    unreadable: how many of the training images that were opened at the start could not be read.
    """

    training: ImageDataset | ImageStream
    validation: ImageDataset
    preview: Tensor
    broken: BrokenImages
    unreadable: int = 0
    places: str = ""
    held_out: HeldOut = field(default_factory=HeldOut)

    def describe(self) -> str:
        """How many there are, for people."""
        training = f"{describe_size(self.training)} training images"
        if self.unreadable:
            training += f" ({self.unreadable} or more unreadable)"
        return f"{training}, {len(self.validation)} validation images"


def open_images(
    config: RunConfig,
    *,
    gather: Callable[[list[str]], list[str]],
    say: Callable[[str], None],
    notes: Path | None = None,
    before: HeldOut | None = None,
) -> RunImages:
    """Opens the data and looks for broken images; every rank must call it.

    Args:
        gather: joins the lists of all ranks into one, the same on each.
        say: told of broken images.
        notes: the folder where streams note how much their shards hold; None: they do not.
        before: what a run that is continued has held out; None: a fresh run.

    Raises:
        ValueError: no such data, or too many broken images.
    """
    data, channels = config.data, config.model.in_channels
    with distributed.main_first():  # the first rank downloads and indexes, the others find it done
        sources = build.build_sources(data, notes, before)
    validation_source, unreadable = without_broken(sources.validation, channels)
    # A stream's images are met as they come: to look for broken ones is to read it all.
    unreadable_training = (
        [] if isinstance(sources, StreamSources) else check_images(sources.train, channels, data.check_images)
    )
    broken = BrokenImages(data.max_broken, gather)
    broken.add([*unreadable, *unreadable_training])
    sentence = broken.report()
    if sentence is not None:
        say(sentence)
    training, validation = build.build_datasets(
        replace(sources, validation=validation_source), data, channels, config.seed
    )
    count = min(_PREVIEW_IMAGES, len(validation))
    spread = [i * len(validation) // count for i in range(count)]
    preview = torch.stack([validation[0, i]["images"] for i in spread])
    count_unreadable = int(distributed.all_reduce_sum(torch.tensor(len(unreadable_training))))
    return RunImages(
        training, validation, preview, broken, count_unreadable, sources.description, sources.record
    )
