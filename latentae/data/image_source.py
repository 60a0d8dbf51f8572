"""What a source of images is, and two wrappers that fit every one: a part of it, a cache of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from latentae.data.names import printable
from latentae.data.workers import worker_number

Pixels = NDArray[np.uint8] | NDArray[np.float32]

_CACHE_LOCK = threading.Lock()


class ImageSource(Protocol):
    """A fixed sequence of images, each with a name, decoded when asked for.

    Write one for data of your own: anything with these three methods trains. It is pickled to the
    loader's workers, and `load` is called from several threads by `check_images`. Two more methods are
    optional: `key(index)`, of which `hold_out` makes its choice where a name depends on the other images, and
    `describe()`, for `describe_source`.
    """

    def __len__(self) -> int:
        """How many images there are."""

    def name(self, index: int) -> str:
        """What to call image `index` in messages; the same on every machine, and different for each."""

    def load(self, index: int, channels: int, minimum_side: int | None = None) -> Pixels:
        """Image `index` as [H, W, channels], uint8 or float32 in [0, 1], perhaps read-only.

        `minimum_side` permits a smaller version whose shorter side has at least that many pixels.
        Raises BrokenImageError where the image cannot be decoded.
        """


class SubsetSource:
    """The images of `source` at `indices`, in that order."""

    def __init__(self, source: ImageSource, indices: NDArray[np.int64]) -> None:
        self.source = source
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        return self.source.name(int(self.indices[index]))

    def load(self, index: int, channels: int, minimum_side: int | None = None) -> Pixels:
        return self.source.load(int(self.indices[index]), channels, minimum_side)


def describe_source(source: ImageSource) -> str:
    """Where images are, how many, and what was left out, as far as the source says it; for people."""
    describe: Callable[[], str] | None = getattr(source, "describe", None)
    if describe is not None:
        return printable(describe())
    inner: ImageSource | None = getattr(source, "source", None)  # of one that wraps another
    if inner is None:
        return f"{len(source)} images"
    text = describe_source(inner)
    return text if len(source) == len(inner) else f"{len(source)} images of {text}"


def take_evenly(source: ImageSource, count: int) -> ImageSource:
    """`count` images spread evenly over `source`, in its order; all of it where it has no more."""
    if len(source) <= count:
        return source
    return SubsetSource(source, np.arange(count) * len(source) // count)


class CachedSource:
    """`source`, keeping decoded images in memory up to `max_bytes`: for few images drawn many times.

    Images that come when the cache is full are decoded each time; none is dropped for another, since
    training draws all of them equally often. Cached arrays are read-only.

    `max_bytes` is for this process and the loader's workers together. What this process holds when they are
    forked is held once for all; of the rest each worker has its share. Workers that are not forked share no
    memory: then this process gives up what it holds, for them to have all of it.
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
                image = image.view()  # the source may go on writing into its own
                image.flags.writeable = False
                self._images[key] = image
                self.used_bytes += image.nbytes
        return image

    def describe_cache(self) -> str:
        """How many images there is room for, judged by those held; empty where none are held."""
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
