"""The interface of a source of images, and wrappers that fit every source: a subset, a cache in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from latentae.data.decode import BrokenImageError, Pixels
from latentae.data.names import printable
from latentae.data.workers import worker_number

_CACHE_LOCK = threading.Lock()


class ImageSource(Protocol):
    """A fixed sequence of images. Each has a name and is decoded on demand.

    For data of your own, write a class with these three methods. It is pickled to the loader's workers, and
    ``check_images`` calls ``load`` from several threads. Three more members are optional: ``key(index)``,
    which ``hold_out`` uses in place of the name where a name depends on the other images, ``describe()``, for
    ``describe_source``, and ``whole``, for ``whole_images``.
    """

    def __len__(self) -> int:
        """Returns the number of images."""

    def name(self, index: int) -> str:
        """Returns the name of image ``index`` for messages: unique, and the same on every machine."""

    def load(self, index: int, channels: int, minimum_side: int | None = None) -> Pixels:
        """Returns image ``index`` as [H, W, channels], uint8 or float32 in [0, 1], perhaps read-only.

        ``minimum_side`` permits a smaller version whose shorter side has at least that many pixels.
        Raises BrokenImageError if the image cannot be decoded.
        """


@dataclass(frozen=True)
class EncodedImage:
    """An image that is not decoded yet.

    Attributes:
        name: its name in messages.
        load: (channels, minimum_side) -> pixels, as ``ImageSource.load``.
        row: its position in its shard, if it comes from one.
    """

    name: str
    load: Callable[[int, int | None], Pixels]
    row: int = 0


def broken_image(name: str, reason: str, row: int = 0) -> EncodedImage:
    """Returns an image whose ``load`` raises BrokenImageError with this reason."""
    return EncodedImage(name, partial(_raise_broken, f"{name}: {reason}"), row)


def _raise_broken(message: str, channels: int, minimum_side: int | None) -> Pixels:
    raise BrokenImageError(message)


class EncodedSource:
    """A source of images that are held in memory without being decoded."""

    def __init__(self, images: Sequence[EncodedImage]) -> None:
        self.images = list(images)

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return self.images[index].name

    def load(self, index: int, channels: int, minimum_side: int | None = None) -> Pixels:
        return self.images[index].load(channels, minimum_side)


@dataclass(eq=False)
class SubsetSource:
    """The images of ``source`` at ``indices``, in that order."""

    source: ImageSource
    indices: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        return self.source.name(int(self.indices[index]))

    def load(self, index: int, channels: int, minimum_side: int | None = None) -> Pixels:
        return self.source.load(int(self.indices[index]), channels, minimum_side)


def spread_evenly(count: int, total: int) -> list[int]:
    """Returns ``count`` positions, evenly spread over ``total``, or all of them if there are no more."""
    count = min(count, total)
    return [position * total // count for position in range(count)]


def take_evenly(source: ImageSource, count: int) -> ImageSource:
    """Returns ``count`` images spread evenly over ``source``, in its order, or all if it has no more."""
    if len(source) <= count:
        return source
    return SubsetSource(source, np.arange(count) * len(source) // count)


def describe_source(source: ImageSource) -> str:
    """Says where the images are, how many there are and what was left out, as far as the source knows."""
    describe: Callable[[], str] | None = getattr(source, "describe", None)
    if describe is not None:
        return printable(describe())
    inner: ImageSource | None = getattr(source, "source", None)  # of a wrapper
    if inner is None:
        return f"{len(source)} images"
    text = describe_source(inner)
    return text if len(source) == len(inner) else f"{len(source)} images of {text}"


def whole_images(source: ImageSource) -> ImageSource:
    """Returns the images that the images of ``source`` are windows of; if they are whole, ``source``."""
    inner: ImageSource | None = source
    while inner is not None:
        whole: ImageSource | None = getattr(inner, "whole", None)
        if whole is not None:
            return whole
        inner = getattr(inner, "source", None)  # of a wrapper
    return source


class CachedSource:
    """Keeps decoded images of ``source`` in memory, up to ``max_bytes``: for few images drawn many times.

    Once the cache is full, further images are decoded each time. None is evicted, since training draws all
    images equally often. Cached arrays are read-only.

    ``max_bytes`` covers this process and the loader's workers together. Images that this process holds when
    the workers are forked are shared; each worker has an equal share of the rest. Workers that are spawned
    share no memory: then this process releases its images, so that the workers can use all of it.
    """

    def __init__(self, source: ImageSource, max_bytes: int = 256 * 2**20) -> None:
        self.source = source
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self._images: dict[tuple[int, int, int | None], Pixels] = {}

    def __len__(self) -> int:
        return len(self.source)

    def name(self, index: int) -> str:
        return self.source.name(index)

    def load(self, index: int, channels: int, minimum_side: int | None = None) -> Pixels:
        key = (index, channels, minimum_side)
        cached = self._images.get(key)
        if cached is not None:
            return cached
        image = self.source.load(index, channels, minimum_side)
        limit = self.max_bytes // worker_number()[1]
        with _CACHE_LOCK:  # `check_images` loads in threads
            if key not in self._images and self.used_bytes + image.nbytes <= limit:
                image = image.view()  # the source may go on writing to its own array
                image.flags.writeable = False
                self._images[key] = image
                self.used_bytes += image.nbytes
        return image

    def describe_cache(self) -> str:
        """Says how many images fit, judged by those that are cached; empty while none are."""
        if not self._images:
            return ""
        room = min(int(self.max_bytes / self.used_bytes * len(self._images)), len(self))
        share = "all" if room == len(self) else f"about {room:,}"
        return (
            f"memory for decoded images has room for {share} of {len(self):,} and holds "
            f"{len(self._images):,}: {self.used_bytes >> 20:,} of {self.max_bytes >> 20:,} MiB are in use"
        )

    def __getstate__(self) -> dict[str, Any]:
        # A pickled copy starts empty: sending the images would take longer than decoding them.
        self._images, self.used_bytes = {}, 0
        return {**self.__dict__, "_images": {}}
