"""Images in tar files, the shards of WebDataset: found by an index of their headers, read by position."""

from __future__ import annotations

import hashlib
import os
import tarfile
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentae.data.arrays import ARRAY_SUFFIXES, ValueRange
from latentae.data.decode import IMAGE_SUFFIXES, BrokenImageError, Pixels, decode_image
from latentae.data.names import describe_files, shard_labels
from latentae.data.source import EncodedImage, broken_image
from latentae.files import cache_folder, written_aside

TAR_SUFFIXES = (".tar",)

_BLOCK = 512
_VERSION = 1  # of the format of cached indexes
_COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}
_IMAGES, _OTHERS = "", "other_"  # prefixes of the arrays in a cached index
_LARGEST_OTHER = 2**20  # bytes of a member that may be a label or a caption


class TarSource:
    """The images of tar files, in the order of the files, named like ``000.tar/0001.jpg``.

    The headers of each file are read once, in threads, and the positions of its images are kept in
    latentae's cache. Every image can then be read directly, so the order is independent of ranks and workers
    as with a folder of images. A damaged file is read as far as possible; its rest counts as one image that
    cannot be decoded.

    Args:
        paths: uncompressed tar files.
        extension: see ``choose_images``; None: one image per sample.
        value_range, max_pixels: see ``decode_image``.

    Raises ValueError if a file cannot be opened or there is no image in any of them.
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
        self._ends = np.cumsum([_count_entries(index) for index in self.indexes])
        if not any(len(index) for index in self.indexes):
            raise ValueError(_nothing_found(self.indexes, extension))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def name(self, index: int) -> str:
        shard, position = self.place(index)
        return _entry_name(self.labels[shard], self.indexes[shard], position)

    def key(self, index: int) -> str:
        """Returns what decides whether image ``index`` is held out: the file's name and its name there."""
        shard, position = self.place(index)
        return _entry_name(self.indexes[shard].path.name, self.indexes[shard], position)

    def describe(self) -> str:
        """Says how many images there are, and where."""
        return f"{len(self)} images in {describe_files([index.path for index in self.indexes])}"

    def load(self, index: int, channels: int, minimum_side: int | None = None) -> Pixels:
        shard, position = self.place(index)
        entry = _read_entry(
            self.labels[shard], self.indexes[shard], position, self.value_range, self.max_pixels
        )
        return entry.load(channels, minimum_side)

    def place(self, index: int) -> tuple[int, int]:
        """Returns the number of image ``index``'s tar file, and its position among the images there."""
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return shard, index - (int(self._ends[shard - 1]) if shard else 0)


class TarShards:
    """Tar files as ``Shards``: the headers of a file are read when its turn comes.

    The arguments are those of ``TarSource``.
    """

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
            self._counts[shard] = _count_entries(open_tar(self.paths[shard], self.extension))
        return self._counts[shard]

    def typical_count(self) -> int:
        return next((count for shard in range(len(self)) if (count := self.count(shard))), 0)

    def label(self, shard: int) -> str:
        return self.labels[shard]

    def describe(self) -> str:
        return describe_files(self.paths)

    def read(self, shard: int, start: int = 0, step: int = 1) -> Iterator[EncodedImage]:
        index = open_tar(self.paths[shard], self.extension)
        self._counts[shard] = _count_entries(index)
        for position in range(start, _count_entries(index), step):
            yield _read_entry(self.labels[shard], index, position, self.value_range, self.max_pixels)


def _count_entries(index: TarIndex) -> int:
    """Counts the images of a tar file, and one more for a part that cannot be read."""
    return len(index) + bool(index.damage)


def _entry_name(label: str, index: TarIndex, position: int) -> str:
    return f"{label}/{index.name(position)}" if position < len(index) else label


def _read_entry(
    label: str, index: TarIndex, position: int, value_range: ValueRange | None, max_pixels: int | None
) -> EncodedImage:
    """Reads the bytes of one image. An error in reading is raised when the image is decoded."""
    name = _entry_name(label, index, position)
    if position == len(index):
        damage = f"damaged after {position} image(s) ({index.damage}): fetch it again"
        return broken_image(name, damage, position)
    try:
        data = index.read(position)
    except OSError as error:
        return broken_image(name, _in_words(error), position)
    load = partial(decode_image, data, name=name, value_range=value_range, max_pixels=max_pixels)
    return EncodedImage(name, load, position)


def _in_words(error: OSError) -> str:
    return f"{type(error).__name__}: {error.strerror or error}"


def _nothing_found(indexes: list[TarIndex], extension: str | None) -> str:
    where = f"{indexes[0].path} and {len(indexes) - 1} more" if len(indexes) > 1 else f"{indexes[0].path}"
    sought = "image" if extension is None else f"image called *.{extension}"
    damages = [f"; {index.path.name} is damaged: {index.damage}" for index in indexes if index.damage]
    return f"no {sought} in the tar file(s) {where}{damages[0] if damages else ''}"


@dataclass(frozen=True)
class TarIndex:
    """The positions of some members of one tar file, in the order of the file.

    The names are one string of bytes, so that millions of them take little memory, which forked workers
    share.

    Attributes:
        path: the tar file.
        offsets, sizes: int64 [n], where the bytes of each member begin, and their number.
        names: all names joined. ends: int64 [n], where each name ends.
        damage: why the rest of the tar file cannot be read; empty if it can.
    """

    path: Path
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    names: bytes
    ends: NDArray[np.int64]
    damage: str = ""

    @classmethod
    def of(cls, path: Path, members: Sequence[tuple[bytes, int, int]], damage: str) -> TarIndex:
        """Makes an index from the name, offset and size of each member."""
        offsets, sizes = (np.array([member[k] for member in members], np.int64) for k in (1, 2))
        ends = np.cumsum([len(name) for name, _, _ in members], dtype=np.int64)
        return cls(path, offsets, sizes, b"".join(name for name, _, _ in members), ends, damage)

    def __len__(self) -> int:
        return len(self.offsets)

    def name(self, position: int) -> str:
        begin = int(self.ends[position - 1]) if position else 0
        return self.names[begin : int(self.ends[position])].decode(errors="surrogateescape")

    def all_names(self) -> list[str]:
        return [self.name(position) for position in range(len(self))]

    def read(self, position: int) -> bytes:
        """Reads the bytes of a member; fewer if the file has been truncated since."""
        with self.path.open("rb") as stream:
            return os.pread(stream.fileno(), int(self.sizes[position]), int(self.offsets[position]))

    def select(self, positions: list[int]) -> TarIndex:
        """Returns the index of some of the members."""
        names = [self.name(position).encode(errors="surrogateescape") for position in positions]
        ends = np.cumsum([len(name) for name in names], dtype=np.int64)
        return TarIndex(
            self.path, self.offsets[positions], self.sizes[positions], b"".join(names), ends, self.damage
        )


def open_tar(path: Path, extension: str | None = None) -> TarIndex:
    """Returns the images of a tar file, from the cached index or else by ``scan_tar``.

    Args:
        path: an uncompressed tar file.
        extension: take the members called ``key.extension`` only; None: one image per sample. See
            ``choose_images``.

    Raises BrokenImageError if the file cannot be opened. A damaged file is read as far as possible.
    """
    index = _open_index(path, _IMAGES)
    return index.select(choose_images(index.all_names(), extension))


def open_other_members(path: Path) -> TarIndex:
    """Returns the small members of a tar file that are not images, such as labels and captions.

    Raises BrokenImageError if the file cannot be opened. A damaged file is read as far as possible.
    """
    return _open_index(path, _OTHERS)


def _open_index(path: Path, kind: str) -> TarIndex:
    try:
        index = _from_cache(path, kind)
        if index is None:
            images, others = scan_tar(path)
            _to_cache(images, others)
            index = images if kind == _IMAGES else others
        return index
    except OSError as error:
        raise BrokenImageError(f"{path}: {_in_words(error)}") from error


def scan_tar(path: Path) -> tuple[TarIndex, TarIndex]:
    """Finds the image files of a tar file by their suffixes, and its other small files, in all headers.

    Files whose names begin with a dot do not count as images. Raises OSError if the file cannot be opened,
    and BrokenImageError if it is compressed.
    """
    images: list[tuple[bytes, int, int]] = []
    others: list[tuple[bytes, int, int]] = []
    damage = ""
    end = path.stat().st_size
    _check_uncompressed(path)
    try:
        with tarfile.open(path, "r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                if not member.isreg():
                    continue
                name = member.name.rpartition("/")[2]
                is_image = name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
                own_name = member.name.removeprefix("./").encode(errors="surrogateescape")
                entry = (own_name, member.offset_data, member.size)
                if is_image and member.offset_data + member.size <= end:
                    images.append(entry)
                elif not is_image and member.size <= _LARGEST_OTHER:
                    others.append(entry)
            if not _ends_properly(path, archive.offset):
                damage = "what follows is not part of a tar file"
    except (tarfile.TarError, ValueError, OverflowError) as error:  # what tarfile raises for broken headers
        damage = str(error)
    return TarIndex.of(path, images, damage), TarIndex.of(path, others, damage)


def _check_uncompressed(path: Path) -> None:
    with path.open("rb") as stream:
        beginning = stream.read(8)
    program = next((program for magic, program in _COMPRESSED.items() if beginning.startswith(magic)), None)
    if program is not None:
        raise BrokenImageError(
            f"{path} is compressed, whatever its name says, and can only be read from its beginning: unpack "
            f"it, e.g. with {program}"
        )


def _ends_properly(path: Path, offset: int) -> bool:
    """Whether a tar file ends at ``offset``: with the mark, a block of zeros, or with the file."""
    with path.open("rb") as stream:
        block = os.pread(stream.fileno(), _BLOCK, offset)
    return not block or block == bytes(_BLOCK)


def choose_images(names: list[str], extension: str | None = None) -> list[int]:
    """Chooses image files of a tar file by the rules of WebDataset and returns their positions.

    Consecutive members whose file names agree up to the first dot are one sample; what follows the dot is
    the extension: ``0001.jpg``, ``0001.depth.png``. With ``extension``, all members that have it are chosen.
    Without, the first member of each sample whose extension has no dot in it; pictures come before arrays
    (.npy), which may hold features of the picture. A sample without such a member is taken whole.
    """
    keys = [split_name(name) for name in names]
    if extension is not None:
        return [position for position, (_, own) in enumerate(keys) if own.lower() == extension.lower()]
    chosen: list[int] = []
    begin = 0
    for position in range(1, len(keys) + 1):
        if position < len(keys) and keys[position][0] == keys[begin][0]:
            continue
        sample = range(begin, position)
        simple = [member for member in sample if "." not in keys[member][1]]
        pictures = [member for member in simple if f".{keys[member][1].lower()}" not in ARRAY_SUFFIXES]
        chosen += (pictures or simple)[:1] or sample
        begin = position
    return chosen


def split_name(name: str) -> tuple[str, str]:
    """Returns the key of a member's sample, and its extension."""
    folder, slash, file = name.rpartition("/")
    key, _, extension = file.partition(".")
    return folder + slash + key, extension


def _cache_file(path: Path) -> Path:
    facts = path.stat()
    key = f"{_VERSION}:{' '.join(IMAGE_SUFFIXES)}:{path.resolve()}:{facts.st_size}:{facts.st_mtime_ns}"
    digest = hashlib.blake2b(key.encode(errors="surrogateescape")).hexdigest()[:32]
    return cache_folder() / "shards" / f"{digest}.npz"


def _from_cache(path: Path, kind: str) -> TarIndex | None:
    """Reads a cached index; None if there is none, or if an earlier version kept no members of this kind."""
    file = _cache_file(path)
    if not file.is_file():
        return None
    try:
        with np.load(file, allow_pickle=False) as stored:
            offsets, sizes, ends = (stored[f"{kind}{key}"] for key in ("offsets", "sizes", "ends"))
            names, damage = (stored[key].tobytes() for key in (f"{kind}names", "damage"))
            return TarIndex(path, offsets, sizes, names, ends, damage.decode())
    except Exception:  # numpy and zipfile raise many kinds of errors; the tar file can be scanned again
        return None


def _to_cache(images: TarIndex, others: TarIndex) -> None:
    file = _cache_file(images.path)
    arrays: dict[str, Any] = {"damage": np.frombuffer(images.damage.encode(), np.uint8)}
    for kind, index in ((_IMAGES, images), (_OTHERS, others)):
        arrays[f"{kind}offsets"], arrays[f"{kind}sizes"] = index.offsets, index.sizes
        arrays[f"{kind}names"], arrays[f"{kind}ends"] = np.frombuffer(index.names, np.uint8), index.ends
    try:
        with written_aside(file) as aside:
            np.savez(aside, **arrays)
    except OSError as error:  # costs time at every start, nothing else
        warnings.warn(
            f"latentae's cache {file.parent} cannot be written ({error.strerror or error}), so the index of "
            "tar files is made again at each start: set LATENTAE_CACHE to a folder that can be written",
            stacklevel=2,
        )
