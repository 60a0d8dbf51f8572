"""Which images go into which shard, and at what size: a function of the data and the options alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from latentae.data import ImageSource
from latentae.latents.cache.measuring import measure_sizes
from latentae.latents.cache.options import CacheOptions
from latentae.models import LatentAutoencoder

Size = tuple[int, int]  # height and width in pixels

_LONGEST_ASPECT = 4
_STEPS = 8  # of a bucket's side, in those of the square


@dataclass(frozen=True)
class ShardPlan:
    """One shard to be.

    Attributes:
        file: its name in the cache.
        size: (height, width) that its images are encoded at.
        indices: of its images in the data, in order.
    """

    file: str
    size: Size
    indices: Sequence[int]


def plan(
    source: ImageSource, model: LatentAutoencoder, options: CacheOptions, *, workers: int, folder: Path
) -> list[ShardPlan]:
    """The shards of some images; every rank must call it.

    Args:
        workers: processes that decode, where sizes must be measured.
        folder: keeps the measured sizes for the next call.

    Raises:
        ValueError: images of several sizes where ``options`` refuses them.
    """
    size, shard_size = options.image_size, options.shard_size
    assert shard_size is not None
    if options.sizes == "crop":
        assert size is not None
        return plan_shards([(size, size)] * len(source), shard_size)
    # Before sizes are measured, which may take long.
    buckets = bucket_sizes(size, model.downsampling_factor) if options.sizes == "bucket" and size else []
    native = measure_sizes(source, model.config.in_channels, workers=workers, folder=folder)
    if buckets:
        return plan_shards(choose_buckets(native, buckets), shard_size)
    names = [source.name(index) for index in range(len(source))]
    return plan_shards([same_size(native, names, size)] * len(source), shard_size)


def plan_shards(sizes: Sequence[Size], shard_size: int) -> list[ShardPlan]:
    """Consecutive images of one size together, the smallest size first.

    Args:
        sizes: what each image is encoded at.
        shard_size: images a shard at most.
    """
    groups: dict[Size, list[int]] = {}
    for index, size in enumerate(sizes):
        groups.setdefault(size, []).append(index)
    shards = []
    for size in sorted(groups):
        members = groups[size]
        for number, start in enumerate(range(0, len(members), shard_size)):
            name = f"latents_{size[0]}x{size[1]}_{number:05d}.safetensors"
            shards.append(ShardPlan(name, size, members[start : start + shard_size]))
    return shards


def bucket_sizes(image_size: int, factor: int) -> list[Size]:
    """Sizes of about ``image_size``² pixels, at most that many, none longer than four times its shorter side.

    Sides are multiples of ``factor``, the pixels that one latent stands for, in steps of about an eighth of
    ``image_size``.

    Raises:
        ValueError: the image size is no multiple of the factor.
    """
    if image_size % factor:
        raise ValueError(
            f"image_size is {image_size}, but where sizes is 'bucket' it must be a multiple of {factor}, the "
            "pixels that one latent stands for"
        )
    step = factor * max(1, round(image_size / (_STEPS * factor)))
    found = {(image_size, image_size)}
    for shorter in range(step, image_size, step):
        longer = image_size**2 // shorter // step * step
        if longer <= _LONGEST_ASPECT * shorter:
            found |= {(shorter, longer), (longer, shorter)}
    return sorted(found)


def choose_buckets(native: NDArray[np.int64], buckets: Sequence[Size]) -> list[Size]:
    """For each image the bucket whose aspect is nearest to its own; for broken ones the most frequent.

    Args:
        native: [n, 2] height and width of each image; 0 where it cannot be decoded.
        buckets: to choose from.
    """
    aspects = np.array([math.log(height / width) for height, width in buckets])
    sound = native[:, 0] > 0
    own = np.log(native[sound, 0] / native[sound, 1])
    chosen = np.abs(own[:, None] - aspects[None, :]).argmin(axis=1)
    usual = int(np.bincount(chosen, minlength=len(buckets)).argmax())
    result = np.full(len(native), usual)
    result[sound] = chosen
    return [buckets[number] for number in result]


def same_size(native: NDArray[np.int64], names: Sequence[str], image_size: int | None) -> Size:
    """The one size that all images have.

    Args:
        native: [n, 2] height and width of each image; 0 where it cannot be decoded.
        names: of the images.
        image_size: the side that they must have; None: any.

    Raises:
        ValueError: two differ, or one is not of the image size; or none can be decoded.
    """
    sound = np.flatnonzero(native[:, 0] > 0)
    if not len(sound):
        raise ValueError(f"none of {len(native)} images can be decoded, so their size is not known")
    first = native[sound[0]]
    wanted = np.array([image_size, image_size]) if image_size is not None else first
    others = sound[(native[sound] != wanted).any(axis=1)]
    if len(others):
        height, width = native[others[0]]
        expected = (
            f"{names[sound[0]]} has {first[0]}x{first[1]}"
            if image_size is None
            else f"image_size is {image_size}x{image_size}"
        )
        raise ValueError(
            f"{names[others[0]]} has {height}x{width} pixels and {expected}, which sizes='refuse' does not "
            f"allow ({len(others)} of {len(sound)} images differ): use sizes='crop' or sizes='bucket'"
        )
    return int(wanted[0]), int(wanted[1])
