"""Map-style samples: a source and a transform, with every draw a function of (seed, epoch, index)."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NotRequired, TypedDict

import numpy as np
import torch
from tqdm import tqdm

from latentae import distributed
from latentae.data.decode import BrokenImageError, check_channels
from latentae.data.seeding import REPLACEMENT, SAMPLE, check_seed, generator
from latentae.data.source import EncodedImage, ImageSource, SubsetSource
from latentae.data.transforms import Transform, common_minimum_side

_SECONDS_OF_SILENCE, _SECONDS_BETWEEN_LINES = 2.0, 15.0


class Sample(TypedDict):
    """One image.

    Keys:
        images: [C, H, W] in [-1, 1].
        index: the index that was asked for.
        name: the name of the image that is shown.
        broken: describes the images that could not be decoded and were replaced, a line ``name: reason`` for
            each. If it is empty, ``name`` is the name of image ``index``.
        latents: of the image, where a dataset has some: see ``latentae.latents.cache.pairs``.
    """

    images: torch.Tensor
    index: int
    name: str
    broken: str
    latents: NotRequired[torch.Tensor]


def make_sample(
    candidates: Iterable[EncodedImage],
    transform: Transform,
    rng: np.random.Generator,
    *,
    channels: int,
    minimum_side: int | None,
    index: int,
) -> Sample:
    """Makes the sample of the first candidate that can be decoded.

    Raises BrokenImageError if none can.
    """
    broken: list[str] = []
    for candidate in candidates:
        try:
            picture = candidate.load(channels, minimum_side)
        except BrokenImageError as error:
            broken.append(str(error))
            continue
        return Sample(
            images=transform(picture, rng), index=index, name=candidate.name, broken="\n".join(broken)
        )
    raise BrokenImageError(
        f"{len(broken)} images in a row cannot be decoded, the first being {broken[0]}; "
        "check the data and the number of channels"
    )


class ImageDataset(torch.utils.data.Dataset[Sample]):
    """``dataset[epoch, index]`` is the ``Sample`` of image ``index`` in epoch ``epoch``.

    It depends on (seed, epoch, index) only: not on batches, workers, ranks or resumes. An image that cannot
    be decoded is replaced by another one, chosen by (seed, epoch, index) as well.
    ``dataset[epoch, index, resolution]`` is the same image, transformed by ``resolutions[resolution]``.

    Args:
        source: the images.
        transform: makes the tensor, e.g. ``RandomCrop``.
        channels: 1 or more; see ``decode_image``.
        seed: 0 or more.
        max_retries: how many replacements are tried for one sample.
        resolutions: transforms to tensors of other sizes, of which ``training_loader`` gives each batch one.

    Raises:
        ValueError: the source is empty, or a number is out of range.
        BrokenImageError (from ``dataset[...]``): neither the image nor any replacement can be decoded.
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
        """Returns the name of image ``index`` for messages."""
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
        return map(self._encoded, self._numbers(epoch, index))

    def _numbers(self, epoch: int, index: int) -> Iterator[int]:
        """Yields the image that was asked for, and then the replacements, by their indices."""
        yield index
        replacements = generator(self.seed, REPLACEMENT, epoch, index)
        for _ in range(self.max_retries):
            yield int(replacements.integers(len(self.source)))

    def _encoded(self, index: int) -> EncodedImage:
        return EncodedImage(self.source.name(index), partial(self.source.load, index))


def check_images(
    source: ImageSource, channels: int, limit: int = 1000, minimum_side: int | None = None
) -> list[str]:
    """Decodes up to ``limit`` images, spread evenly over ``source``, in threads; ranks share the work.

    Shows a progress bar if that takes long. ``minimum_side`` is that of ``ImageSource.load``.

    Returns a line ``name: reason`` for each broken image in this rank's part. Raises ValueError if channels
    or limit is out of range.
    """
    check_channels(channels)
    if limit < 0:
        raise ValueError(f"check_images={limit} must be 0 or more: how many images to decode at the start")
    count = min(limit, len(source))
    indices = [position * len(source) // count for position in distributed.own_part(count)]
    return [reason for reason in _decode_all(source, channels, indices, minimum_side) if reason]


def without_broken(
    source: ImageSource, channels: int, minimum_side: int | None = None
) -> tuple[ImageSource, list[str]]:
    """Decodes every image; returns the source without the broken ones, and this rank's lines about those.

    For validation, where each image counts exactly once. Each rank decodes its part, so every rank must call
    this; the returned source is the same on all. Shows a progress bar if that takes long. ``minimum_side`` is
    that of ``ImageSource.load``. Raises BrokenImageError if all images are broken.
    """
    check_channels(channels)
    reasons = _decode_all(source, channels, distributed.own_part(len(source)), minimum_side)
    broken = [reason for reason in reasons if reason]
    own = torch.tensor([not reason for reason in reasons], dtype=torch.uint8)
    sound = distributed.all_gather_concat(own).bool().numpy()
    if sound.all():
        return source, broken
    if not sound.any():
        first = f", the first being {broken[0]}" if broken else ""
        raise BrokenImageError(f"all {len(source)} images are broken{first}")
    return SubsetSource(source, np.flatnonzero(sound)), broken


def _decode_all(
    source: ImageSource, channels: int, indices: Sequence[int], minimum_side: int | None
) -> list[str]:
    """Returns why each image cannot be decoded; "" if it can. Decoders release Python's lock."""

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
            # A terminal shows a moving bar, a log an occasional line.
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
