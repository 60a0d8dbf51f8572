"""Plans a cache: the options, the size at which each image is encoded, and the images of each shard.

All of it is a function of the data and the options alone, never of the number of ranks.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch.utils.data import Dataset

from latentae import distributed
from latentae.data import BrokenImageError, ImageSource
from latentae.data.workers import WatchedLoader
from latentae.distributed import on_main
from latentae.evaluation.models import PRECISIONS
from latentae.files import write_aside
from latentae.models import LatentAutoencoder

Size = tuple[int, int]  # height and width in pixels

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
"""The dtypes that latents can be stored in."""

SIZES = ("crop", "bucket", "refuse")
BROKEN = ("skip", "replace", "stop")

_FEWEST_IMAGES, _MOST_IMAGES, _SHARDS, _MOST_BYTES = 128, 1024, 64, 256 * 2**20

_LONGEST_ASPECT = 4
_STEPS = 8  # a bucket's side grows by this fraction of the square's side

_SIZES_FILE = "sizes.safetensors"
_IMAGES_AT_A_TIME = 64


@dataclass(frozen=True)
class CacheOptions:
    """The contents of a cache. All options are recorded in the cache.

    Attributes:
        image_size: pixels; see ``sizes``. None with ``refuse``: the size that the images have.
        sizes: how images of several sizes are treated. ``crop``: the shorter side is resized to
            ``image_size``, and the central square is taken. ``bucket``: the aspect is kept, with about
            ``image_size``² pixels, and each shard holds latents of one size. ``refuse``: nothing is resized,
            and all images must have one size.
        flips: also encode each image mirrored left and right.
        latents: store latents: the posterior's mean and standard deviation; of VQ models the continuous ones.
        codes: store the indices of VQ models.
        dtype: of the stored latents, one of ``DTYPES``.
        precision: the encoder runs in, one of ``PRECISIONS``.
        broken: how images that cannot be decoded are treated. ``skip``: they are left out and reported.
            ``replace``: another image takes the place, chosen by (seed, index) as in training. ``stop``: an
            error.
        shard_size: images per shard; None only until the data are known.
        seed: chooses replacements.
        alpha: four channels are RGBA, whose colours are resized by their alpha: see ``resize_window``.

    Raises:
        ValueError: an option has a value that is not allowed.
    """

    image_size: int | None
    sizes: str = "crop"
    flips: bool = False
    latents: bool = True
    codes: bool = False
    dtype: str = "float16"
    precision: str = "float32"
    broken: str = "skip"
    shard_size: int | None = None
    seed: int = 0
    alpha: bool = False

    def __post_init__(self) -> None:
        choices = {"sizes": SIZES, "dtype": DTYPES, "precision": PRECISIONS, "broken": BROKEN}
        for name, allowed in choices.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}, but must be one of {', '.join(allowed)}")
        check_at_least(1, image_size=self.image_size, shard_size=self.shard_size)
        check_at_least(0, seed=self.seed)
        if self.image_size is None and self.sizes != "refuse":
            raise ValueError(f"image_size is needed where sizes is {self.sizes!r}: the side in pixels")
        if not self.latents and not self.codes:
            raise ValueError("latents is false and codes is false: there would be nothing to store")

    def recorded(self) -> dict[str, Any]:
        """Returns the options as a cache records them: ``alpha`` only if given, so that older caches open."""
        options = asdict(self)
        if not self.alpha:
            del options["alpha"]
        return options


def check_at_least(lowest: int, **numbers: int | None) -> None:
    """Raises ValueError, which names the option, for a number below the lowest one; None is allowed."""
    for name, value in numbers.items():
        if value is not None and value < lowest:
            raise ValueError(f"{name} is {value}, but must be {lowest} or more")


@dataclass(frozen=True)
class ShardPlan:
    """A shard that is to be written.

    Attributes:
        file: its name in the cache.
        size: (height, width) that its images are encoded at.
        indices: of its images in the data, in order.
    """

    file: str
    size: Size
    indices: Sequence[int]


def default_shard_size(images: int, image_size: int | None, model: LatentAutoencoder) -> int:
    """Returns the images per shard: 1024 for a large data set, fewer for a small one, so that ranks share it.

    It is a power of two from 128 to 1024, or less where a shard would exceed 256 MiB in float32, and does not
    depend on the number of processes.
    """
    size = _FEWEST_IMAGES
    while size < _MOST_IMAGES and size * _SHARDS < images:
        size *= 2
    if image_size is not None:
        values = 2 * model.latents_channels * (-(-image_size // model.downsampling_factor)) ** 2
        while size > 1 and size * values * 4 > _MOST_BYTES:
            size //= 2
    return size


def plan_cache(
    source: ImageSource, model: LatentAutoencoder, options: CacheOptions, *, workers: int, folder: Path
) -> list[ShardPlan]:
    """Returns the shards of a cache; every rank must call it.

    Args:
        source: the images.
        model: gives the pixels per latent and the image channels.
        options: with a ``shard_size``.
        workers, folder: see ``measure_sizes``.

    Raises:
        ValueError: images of several sizes where ``options`` refuses them.
    """
    size, shard_size = options.image_size, options.shard_size
    assert shard_size is not None
    if options.sizes == "crop":
        assert size is not None
        return plan_shards([(size, size)] * len(source), shard_size)
    # Choose the buckets before sizes are measured, which may take long: the image size may be wrong.
    buckets = bucket_sizes(size, model.image_multiple) if options.sizes == "bucket" and size else []
    native = measure_sizes(source, model.config.in_channels, workers=workers, folder=folder)
    if buckets:
        return plan_shards(choose_buckets(native, buckets), shard_size)
    names = [source.name(index) for index in range(len(source))]
    return plan_shards([same_size(native, names, size)] * len(source), shard_size)


def plan_shards(sizes: Sequence[Size], shard_size: int) -> list[ShardPlan]:
    """Returns shards of at most ``shard_size`` consecutive images of one size, the smallest size first."""
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
    """Returns sizes of at most ``image_size``² pixels whose longer side is at most four times the shorter.

    Sides are multiples of ``factor``, the pixels per latent, in steps of about an eighth of ``image_size``.

    Raises:
        ValueError: the image size is not a multiple of the factor.
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
    """Returns the bucket of the nearest aspect for each image; broken images get the most frequent bucket.

    Args:
        native: [n, 2] height and width of each image; 0 where it cannot be decoded.
        buckets: the sizes to choose from.
    """
    # Compare aspects by their logarithms, so that 2:1 and 1:2 are equally far from 1:1.
    aspects = np.array([math.log(height / width) for height, width in buckets])
    sound = native[:, 0] > 0
    own = np.log(native[sound, 0] / native[sound, 1])
    chosen = np.abs(own[:, None] - aspects[None, :]).argmin(axis=1)
    usual = int(np.bincount(chosen, minlength=len(buckets)).argmax())
    result = np.full(len(native), usual)
    result[sound] = chosen
    return [buckets[number] for number in result]


def same_size(native: NDArray[np.int64], names: Sequence[str], image_size: int | None) -> Size:
    """Returns the size that all images have.

    Args:
        native: [n, 2] height and width of each image; 0 where it cannot be decoded.
        names: of the images.
        image_size: the side that they must have; None: any.

    Raises:
        ValueError: two images differ, or one does not have the image size; or none can be decoded.
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


@dataclass
class _Sizes(Dataset[list[list[int]]]):
    """``sizes[indices]`` gives height and width of images; 0 and 0 for those that cannot be decoded."""

    source: ImageSource
    channels: int

    def __getitem__(self, indices: Sequence[int]) -> list[list[int]]:
        return [self._size(index) for index in indices]

    def _size(self, index: int) -> list[int]:
        try:
            return list(self.source.load(index, self.channels).shape[:2])
        except BrokenImageError:
            return [0, 0]


def measure_sizes(source: ImageSource, channels: int, *, workers: int, folder: Path) -> NDArray[np.int64]:
    """Returns height and width [n, 2] of all images, 0 where one cannot be decoded; every rank must call it.

    Each image is decoded once, by one of the ranks. The result is kept in ``folder`` for the next call.
    """
    # Use the kept sizes only if every rank can read them.
    known = _load_sizes(folder / _SIZES_FILE, len(source))
    agreed = int(distributed.all_reduce_sum(torch.tensor(int(known is not None))).item())
    if known is not None and agreed == distributed.world_size():
        return known
    # Each rank measures one consecutive part.
    own = distributed.own_part(len(source))
    loader = WatchedLoader(
        _Sizes(source, channels),
        num_workers=workers,
        sampler=[own[start : start + _IMAGES_AT_A_TIME] for start in range(0, len(own), _IMAGES_AT_A_TIME)],
        batch_size=None,
        generator=torch.Generator(),  # or the loader would draw from torch's global one
    )
    measured = [size for sizes in loader for size in sizes]
    tensor = torch.tensor(measured, dtype=torch.int64).reshape(-1, 2)
    sizes = distributed.all_gather_concat(tensor).cpu().numpy()
    on_main(lambda: write_aside(folder / _SIZES_FILE, save({"sizes": sizes})), f"write to {folder}")
    return sizes


def forget_sizes(folder: Path) -> None:
    """Removes the file that ``measure_sizes`` keeps."""
    (folder / _SIZES_FILE).unlink(missing_ok=True)


def _load_sizes(file: Path, images: int) -> NDArray[np.int64] | None:
    with contextlib.suppress(OSError, SafetensorError, KeyError):
        sizes: NDArray[np.int64] = load(file.read_bytes())["sizes"]
        return sizes if sizes.shape == (images, 2) else None
    return None
