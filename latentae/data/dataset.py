"""Samples: a source and a transform, with every random number a function of (seed, epoch, index)."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from tqdm import tqdm

from latentae import distributed
from latentae.data.decode import BrokenImageError, check_channels
from latentae.data.image_source import ImageSource, SubsetSource
from latentae.data.samples import EncodedImage, Sample, make_sample
from latentae.data.seeding import REPLACEMENT, SAMPLE, check_seed, generator
from latentae.data.transforms import Transform, common_minimum_side

_SECONDS_OF_SILENCE, _SECONDS_BETWEEN_LINES = 2.0, 15.0


class ImageDataset(torch.utils.data.Dataset[Sample]):
    """`dataset[epoch, index]` is the `Sample` of image `index` as epoch `epoch` sees it.

    It depends on (seed, epoch, index) only, and so not on batches, workers, ranks or resumes. An
    image that cannot be decoded is replaced by another, which (seed, epoch, index) chooses as well.
    `dataset[epoch, index, resolution]` is the same image made by `resolutions[resolution]`.

    Args:
        source: the images.
        transform: makes the tensor, e.g. `RandomCrop`.
        channels: 1 or more; see `decode_image`.
        seed: 0 or more.
        max_retries: how many replacements are tried for one sample.
        resolutions: transforms to tensors of other sizes, of which `training_loader` gives each batch one.

    Raises:
        ValueError: the source is empty, or a number is out of its range.
        BrokenImageError (from `dataset[...]`): neither the image nor any replacement could be decoded.
    """

    def __init__(
        self,
        source: ImageSource,
        transform: Transform,
        channels: int,
        seed: int = 0,
        max_retries: int = 16,
        resolutions: Sequence[Transform] = (),
    ) -> None:
        check_seed(seed)
        if len(source) == 0:
            raise ValueError("the source has no images")
        if max_retries < 0:
            raise ValueError(f"max_retries={max_retries} must be 0 or more")
        self.source = source
        self.transform = transform
        self.channels = channels
        self.seed = seed
        self.max_retries = max_retries
        self.resolutions = tuple(resolutions)
        self.minimum_side = common_minimum_side([transform, *resolutions])

    def __len__(self) -> int:
        return len(self.source)

    def name(self, index: int) -> str:
        """What image `index` is called in messages."""
        return self.source.name(index)

    def __getitem__(self, key: tuple[int, int] | tuple[int, int, int]) -> Sample:
        epoch, index, *resolution = key
        return make_sample(
            self._candidates(epoch, index),
            self.resolutions[resolution[0]] if resolution else self.transform,
            generator(self.seed, SAMPLE, epoch, index),
            channels=self.channels,
            minimum_side=self.minimum_side,
            index=index,
        )

    def _candidates(self, epoch: int, index: int) -> Iterator[EncodedImage]:
        yield self._encoded(index)
        replacements = generator(self.seed, REPLACEMENT, epoch, index)
        for _ in range(self.max_retries):
            yield self._encoded(int(replacements.integers(len(self.source))))

    def _encoded(self, index: int) -> EncodedImage:
        return EncodedImage(self.source.name(index), partial(self.source.load, index))


def check_images(
    source: ImageSource, channels: int, limit: int = 1000, minimum_side: int | None = None
) -> list[str]:
    """Decode up to `limit` images, spread evenly over `source`, in threads; several ranks share the work.

    Where that takes long, a bar shows how far it is. `minimum_side` is `ImageSource.load`'s.

    Returns the descriptions, `name: reason`, of those broken among this rank's part. Raises ValueError if
    channels or limit is out of its range.
    """
    check_channels(channels)
    if limit < 0:
        raise ValueError(f"check_images={limit} must be 0 or more: how many images to decode at the start")
    count = min(limit, len(source))
    indices = [position * len(source) // count for position in _own_part(count)]
    return [reason for reason in _decode_all(source, channels, indices, minimum_side) if reason]


def without_broken(
    source: ImageSource, channels: int, minimum_side: int | None = None
) -> tuple[ImageSource, list[str]]:
    """Decode every image: the source without the broken ones, and this rank's descriptions of those.

    For validation, where each image counts exactly once. Each rank decodes its part, so every rank must
    call it; the source comes out the same on all. Where that takes long, a bar shows how far it is.
    `minimum_side` is `ImageSource.load`'s. Raises BrokenImageError if all are broken.
    """
    check_channels(channels)
    reasons = _decode_all(source, channels, _own_part(len(source)), minimum_side)
    broken = [reason for reason in reasons if reason]
    own = torch.tensor([not reason for reason in reasons], dtype=torch.uint8)
    sound = distributed.all_gather_concat(own).bool().numpy()
    if sound.all():
        return source, broken
    if not sound.any():
        first = f", the first being {broken[0]}" if broken else ""
        raise BrokenImageError(f"all {len(source)} images are broken{first}")
    return SubsetSource(source, np.flatnonzero(sound)), broken


def _own_part(count: int) -> range:
    """The positions of 0 to `count` that are this rank's: contiguous, so that parts joined are in order."""
    rank, world_size = distributed.rank(), distributed.world_size()
    return range(count * rank // world_size, count * (rank + 1) // world_size)


def _decode_all(
    source: ImageSource, channels: int, indices: Sequence[int], minimum_side: int | None
) -> list[str]:
    """Why each of the images cannot be decoded; "" for those that can. Decoders release Python's lock."""

    def reason(index: int) -> str:
        try:
            source.load(index, channels, minimum_side)
        except BrokenImageError as error:
            return str(error)
        return ""

    with (
        ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool,
        tqdm(
            desc="opening images, to find those that cannot be read",
            total=len(indices),
            unit="image",
            delay=_SECONDS_OF_SILENCE,
            # A log gets a line now and then, a terminal a bar that moves.
            mininterval=0.1 if sys.stderr.isatty() else _SECONDS_BETWEEN_LINES,
            maxinterval=_SECONDS_BETWEEN_LINES,
            leave=False,
            disable=not distributed.is_main(),
        ) as bar,
    ):
        reasons = []
        for text in pool.map(reason, indices):
            reasons.append(text)
            bar.update()
        return reasons
