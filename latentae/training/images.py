"""The images of a run: opened, checked, and those that are shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from latentae import build, distributed
from latentae.config import ConfigError, RunConfig
from latentae.data import (
    CachedSource,
    HeldOut,
    ImageDataset,
    ImageStream,
    check_images,
    describe_size,
)
from latentae.training.broken import BrokenImages
from latentae.training.folder import RunFolder

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
    training, validation = build.build_datasets(sources, data, channels, config.seed)
    broken = BrokenImages(data.max_broken, gather)
    unreadable = _check(validation, data.check_images)
    # A stream's images are met as they come: to look for broken ones is to read it all.
    unreadable_training = _check(training, data.check_images) if isinstance(training, ImageDataset) else []
    broken.add([*unreadable, *unreadable_training])
    sentence = broken.report()
    if sentence is not None:
        say(sentence)
    if isinstance(training, ImageDataset) and isinstance(training.source, CachedSource):
        remark = training.source.describe_cache()
        if remark:
            share = "three quarters" if distributed.local_world_size() == 1 else "this process's share"
            say(f"{remark} ({share} of data.cache_megabytes={data.cache_megabytes})")
    count = min(_PREVIEW_IMAGES, len(validation))
    spread = [i * len(validation) // count for i in range(count)]
    preview = torch.stack([validation[0, i]["images"] for i in spread])
    count_unreadable = int(distributed.all_reduce_sum(torch.tensor(len(unreadable_training))))
    return RunImages(
        training, validation, preview, broken, count_unreadable, sources.description, sources.record
    )


def held_out_before(folder: RunFolder, resume: str) -> HeldOut | None:
    """What the run that is continued, or branched off, has held out; None for a fresh start.

    Raises:
        ConfigError: the record cannot be read.
    """
    checkpoint = folder.checkpoint_to_resume(resume)
    if checkpoint is None:
        return None
    file = RunFolder(checkpoint.parent.parent).held_out
    if not file.exists():  # a run of a version that kept no record
        return HeldOut(by_name=True)
    try:
        return HeldOut.from_dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{file}, which says what the run has kept out of training, cannot be read ({error}); restore "
            "it, or start again in a new output_dir"
        ) from error


def _check(dataset: ImageDataset, limit: int) -> list[str]:
    """Why some of a dataset's images cannot be decoded, of up to `limit` of this rank's and others' part.

    They are decoded as large as the dataset wants them, so that a cache of decoded images keeps them.
    """
    return check_images(dataset.source, dataset.channels, limit, dataset.minimum_side)
