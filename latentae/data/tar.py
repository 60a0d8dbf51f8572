"""Images in tar files, the shards of WebDataset: each at its place, or read front to back."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from latentae.data.decode import BrokenImageError, decode_image
from latentae.data.folder import describe_files
from latentae.data.image_source import Pixels
from latentae.data.levels import ValueRange
from latentae.data.samples import EncodedImage
from latentae.data.tar_index import TarIndex, open_tar

TAR_SUFFIXES = (".tar",)


class TarSource:
    """The images of some tar files, in the files' order, named like `000.tar/0001.jpg`.

    The files' headers are read once, in threads, and the places of all images kept in latentae's cache. So
    every image is as near as any other, and all that holds for a folder of images holds here: the order
    does not depend on ranks and workers. A damaged file is read as far as it goes; its rest counts as one
    image that cannot be decoded.

    Args:
        paths: uncompressed tar files.
        extension: see `choose_images`; None: one image of each sample.
        value_range, max_pixels: see `decode_image`.

    Raises ValueError if a file cannot be opened, or there is no image in any.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        extension: str | None = None,
        value_range: ValueRange | None = None,
        max_pixels: int | None = None,
    ) -> None:
        with ThreadPoolExecutor(max_workers=16) as pool:
            self.indexes = list(pool.map(partial(open_tar, extension=extension), paths))
        self.labels = shard_labels(paths)
        self.value_range = value_range
        self.max_pixels = max_pixels
        self._ends = np.cumsum([count_entries(index) for index in self.indexes])
        if not any(len(index) for index in self.indexes):
            raise ValueError(_nothing_found(self.indexes, extension))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def name(self, index: int) -> str:
        shard, position = self.place(index)
        return entry_name(self.labels[shard], self.indexes[shard], position)

    def key(self, index: int) -> str:
        """What decides whether image `index` is held out: its names in the file and that of the file."""
        shard, position = self.place(index)
        return entry_name(self.indexes[shard].path.name, self.indexes[shard], position)

    def describe(self) -> str:
        """How many images there are, and where; for people."""
        return f"{len(self)} images in {describe_files([index.path for index in self.indexes])}"

    def load(self, index: int, channels: int, minimum_side: int | None = None) -> Pixels:
        shard, position = self.place(index)
        entry = read_entry(
            self.labels[shard], self.indexes[shard], position, self.value_range, self.max_pixels
        )
        return entry.load(channels, minimum_side)

    def place(self, index: int) -> tuple[int, int]:
        """Which tar file image `index` is in, and its position among the images there."""
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return shard, index - (int(self._ends[shard - 1]) if shard else 0)


class TarShards:
    """Tar files as `Shards`: their headers are read file by file, when it is its turn."""

    def __init__(
        self,
        paths: Sequence[Path],
        extension: str | None = None,
        value_range: ValueRange | None = None,
        max_pixels: int | None = None,
    ) -> None:
        self.paths = list(paths)
        self.labels = shard_labels(paths)
        self.extension = extension
        self.value_range = value_range
        self.max_pixels = max_pixels
        self._counts: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def count(self, shard: int) -> int:
        if shard not in self._counts:
            self._counts[shard] = count_entries(open_tar(self.paths[shard], self.extension))
        return self._counts[shard]

    def typical_count(self) -> int:
        return next((count for shard in range(len(self)) if (count := self.count(shard))), 0)

    def label(self, shard: int) -> str:
        return self.labels[shard]

    def describe(self) -> str:
        """Where the images are; for people."""
        return describe_files(self.paths)

    def read(self, shard: int, start: int = 0, step: int = 1) -> Iterator[EncodedImage]:
        index = open_tar(self.paths[shard], self.extension)
        self._counts[shard] = count_entries(index)
        for position in range(start, count_entries(index), step):
            yield read_entry(self.labels[shard], index, position, self.value_range, self.max_pixels)


def shard_labels(paths: Sequence[Path]) -> list[str]:
    """What files are called on every machine: their paths from the folder that all have in common."""
    parents = [os.path.abspath(path.parent) for path in paths]  # noqa: PTH100 (resolve() would follow links)
    common = os.path.commonpath(parents) if parents else ""
    return [
        Path(os.path.relpath(parent, common), path.name).as_posix()
        for parent, path in zip(parents, paths, strict=True)
    ]


def count_entries(index: TarIndex) -> int:
    """The images of a tar file, and one more for the part that cannot be read."""
    return len(index) + bool(index.damage)


def entry_name(label: str, index: TarIndex, position: int) -> str:
    return f"{label}/{index.name(position)}" if position < len(index) else label


def read_entry(
    label: str,
    index: TarIndex,
    position: int,
    value_range: ValueRange | None,
    max_pixels: int | None = None,
) -> EncodedImage:
    """One image, its bytes read already; an error in reading comes when it is decoded."""
    name = entry_name(label, index, position)
    if position == len(index):
        reason = f"damaged after {position} image(s) ({index.damage}): fetch it again"
        return EncodedImage(name, partial(_raise, f"{name}: {reason}"), position)
    try:
        data = index.read(position)
    except OSError as error:
        reason = f"{type(error).__name__}: {error.strerror or error}"
        return EncodedImage(name, partial(_raise, f"{name}: {reason}"), position)
    return EncodedImage(name, partial(decode_encoded, data, name, value_range, max_pixels), position)


def decode_encoded(
    data: bytes | Path,
    name: str,
    value_range: ValueRange | None,
    max_pixels: int | None,
    channels: int,
    minimum_side: int | None,
) -> Pixels:
    """`decode_image`, with what is known of an image before what is asked of it."""
    return decode_image(
        data,
        channels,
        minimum_side=minimum_side,
        name=name,
        value_range=value_range,
        max_pixels=max_pixels,
    )


def _raise(message: str, channels: int, minimum_side: int | None) -> Pixels:
    raise BrokenImageError(message)


def _nothing_found(indexes: list[TarIndex], extension: str | None) -> str:
    where = f"{indexes[0].path} and {len(indexes) - 1} more" if len(indexes) > 1 else f"{indexes[0].path}"
    sought = "image" if extension is None else f"image called *.{extension}"
    damages = [f"; {index.path.name} is damaged: {index.damage}" for index in indexes if index.damage]
    return f"no {sought} in the tar file(s) {where}{damages[0] if damages else ''}"
