"""Samples: a source and a transform, with every random number a function of (seed, epoch, index)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypedDict

import numpy as np
import torch

from latentae.data.decode import BrokenImageError, check_channels
from latentae.data.image_source import ImageSource, SubsetSource
from latentae.data.seeding import REPLACEMENT, SAMPLE, check_seed, generator
from latentae.data.transforms import Transform


class Sample(TypedDict):
    """One image: `images` [C, H, W] in [-1, 1], the `index` asked for, and `broken`.

    `broken` describes the images that could not be decoded and were replaced, each `name: reason`, one
    a line; it is empty where all went well.
    """

    images: torch.Tensor
    index: int
    broken: str


class ImageDataset(torch.utils.data.Dataset[Sample]):
    """`dataset[epoch, index]` is the `Sample` of image `index` as epoch `epoch` sees it.

    It depends on (seed, epoch, index) only, and so not on batches, workers, ranks or resumes. An
    image that cannot be decoded is replaced by another, which (seed, epoch, index) chooses as well.

    Args:
        source: the images.
        transform: makes the tensor, e.g. `RandomCrop`.
        channels: 1 or more; see `decode_image`.
        seed: 0 or more.
        max_retries: how many replacements are tried for one sample.

    Raises:
        ValueError: the source is empty, or a number is out of its range.
        BrokenImageError (from `dataset[...]`): neither the image nor any replacement could be decoded.
    """

    def __init__(
        self, source: ImageSource, transform: Transform, channels: int, seed: int = 0, max_retries: int = 16
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

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        replacements = generator(self.seed, REPLACEMENT, epoch, index)
        broken: list[str] = []
        candidate = index
        for _ in range(self.max_retries + 1):
            try:
                picture = self.source.load(candidate, self.channels, self.transform.minimum_side)
            except BrokenImageError as error:
                broken.append(str(error).replace("\n", " "))
                candidate = int(replacements.integers(len(self.source)))
                continue
            images = self.transform(picture, generator(self.seed, SAMPLE, epoch, index))
            return Sample(images=images, index=index, broken="\n".join(broken))
        raise BrokenImageError(
            f"{len(broken)} images in a row cannot be decoded, the first being {broken[0]}; "
            "check the data and the number of channels"
        )


def check_images(source: ImageSource, channels: int, limit: int = 1000) -> list[str]:
    """Decode up to `limit` images, spread evenly over `source`, in threads.

    Returns the descriptions, `name: reason`, of those that are broken. Raises ValueError if channels
    or limit is out of its range.
    """
    check_channels(channels)
    if limit < 0:
        raise ValueError(f"check_images={limit} must be 0 or more: how many images to decode at the start")
    count = min(limit, len(source))
    indices = [position * len(source) // count for position in range(count)]
    return [reason for reason in _decode_all(source, channels, indices) if reason]


def without_broken(source: ImageSource, channels: int) -> tuple[ImageSource, list[str]]:
    """Decode every image: the source without the broken ones, and their descriptions.

    For validation, where each image counts exactly once. Raises BrokenImageError if all are broken.
    """
    check_channels(channels)
    reasons = _decode_all(source, channels, range(len(source)))
    broken = [reason for reason in reasons if reason]
    if not broken:
        return source, []
    if len(broken) == len(source):
        raise BrokenImageError(f"all {len(source)} images are broken, the first being {broken[0]}")
    return SubsetSource(source, np.flatnonzero([not reason for reason in reasons])), broken


def _decode_all(source: ImageSource, channels: int, indices: Sequence[int]) -> list[str]:
    """Why each of the images cannot be decoded; "" for those that can. Decoders release Python's lock."""

    def reason(index: int) -> str:
        try:
            source.load(index, channels)
        except BrokenImageError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        return list(pool.map(reason, indices))
