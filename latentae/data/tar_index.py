"""Where the images in a tar file lie, so that each can be read without what stands before it."""

from __future__ import annotations

import hashlib
import os
import tarfile
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from latentae.data.arrays import ARRAY_SUFFIXES
from latentae.data.decode import IMAGE_SUFFIXES, BrokenImageError

_BLOCK = 512
_VERSION = 1  # of the file format of stored indexes
_COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}


@dataclass(frozen=True)
class TarIndex:
    """The image files of one tar file, in its order.

    Names are one string of bytes, so that millions of them take little memory and none at all in the
    workers that are forked.

    Attributes:
        path: the tar file.
        offsets, sizes: int64 [n], of each image's bytes.
        names: all names joined. ends: int64 [n], where each ends.
        damage: why the rest of the tar file cannot be read; empty: it can.
    """

    path: Path
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    names: bytes
    ends: NDArray[np.int64]
    damage: str = ""

    def __len__(self) -> int:
        return len(self.offsets)

    def name(self, position: int) -> str:
        begin = int(self.ends[position - 1]) if position else 0
        return self.names[begin : int(self.ends[position])].decode(errors="surrogateescape")

    def read(self, position: int) -> bytes:
        """The bytes of an image; fewer where the file has since been cut."""
        with self.path.open("rb") as stream:
            return os.pread(stream.fileno(), int(self.sizes[position]), int(self.offsets[position]))

    def select(self, positions: list[int]) -> TarIndex:
        """The index of some of the images."""
        names = [self.name(position).encode(errors="surrogateescape") for position in positions]
        ends = np.cumsum([len(name) for name in names], dtype=np.int64)
        return TarIndex(
            self.path, self.offsets[positions], self.sizes[positions], b"".join(names), ends, self.damage
        )


def open_tar(path: Path, extension: str | None = None) -> TarIndex:
    """The images of a tar file, from the index that latentae's cache keeps of it, or else by `scan_tar`.

    Args:
        path: of an uncompressed tar file.
        extension: take the members called `key.extension` only; None: one image of each sample, as
            `choose_images` does.

    Raises BrokenImageError if the file cannot be opened; a damaged one is read as far as it goes.
    """
    try:
        index = _from_cache(path)
        if index is None:
            index = scan_tar(path)
            _to_cache(index)
    except OSError as error:
        raise BrokenImageError(f"{path}: {type(error).__name__}: {error.strerror or error}") from error
    names = [index.name(position) for position in range(len(index))]
    return index.select(choose_images(names, extension))


def scan_tar(path: Path) -> TarIndex:
    """All image files of a tar file by their suffixes, found by reading the headers of all members.

    Files whose name begins with a dot do not count. Raises OSError if the file cannot be opened, and
    BrokenImageError if it is compressed.
    """
    offsets: list[int] = []
    sizes: list[int] = []
    names: list[bytes] = []
    damage = ""
    end = path.stat().st_size
    _check_uncompressed(path)
    try:
        with tarfile.open(path, "r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                name = member.name.rpartition("/")[2]
                is_image = name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
                if is_image and member.isreg() and member.offset_data + member.size <= end:
                    offsets.append(member.offset_data)
                    sizes.append(member.size)
                    names.append(member.name.removeprefix("./").encode(errors="surrogateescape"))
            if not _ends_properly(path, archive.offset):
                damage = "what follows is no tar file any more"
    except (tarfile.TarError, ValueError, OverflowError) as error:  # what tarfile raises for broken headers
        damage = str(error)
    return TarIndex(
        path,
        np.array(offsets, np.int64),
        np.array(sizes, np.int64),
        b"".join(names),
        np.cumsum([len(name) for name in names], dtype=np.int64),
        damage,
    )


def _check_uncompressed(path: Path) -> None:
    """Raise BrokenImageError where a file is compressed, whatever its name says."""
    with path.open("rb") as stream:
        beginning = stream.read(8)
    program = next((program for magic, program in _COMPRESSED.items() if beginning.startswith(magic)), None)
    if program is not None:
        raise BrokenImageError(
            f"{path} is compressed, whatever its name says, and can only be read from its beginning: unpack "
            f"it, e.g. with {program}"
        )


def choose_images(names: list[str], extension: str | None = None) -> list[int]:
    """Which of the image files of a tar file are taken, by the rules of WebDataset.

    Members that follow each other and are called alike up to the first dot of the file name are one
    sample, what follows the dot being the extension: `0001.jpg`, `0001.depth.png`. With `extension`, those
    that have it. Without, the first of each sample whose extension has no dot in it, a picture rather than
    an array (.npy), which may hold features of it; in a sample without such, all.
    """
    keys = [_split_name(name) for name in names]
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


def _split_name(name: str) -> tuple[str, str]:
    folder, slash, file = name.rpartition("/")
    key, _, extension = file.partition(".")
    return folder + slash + key, extension


def _ends_properly(path: Path, offset: int) -> bool:
    """Whether a tar file ends at `offset`: by its mark, a block of zeros, or the end of the file."""
    with path.open("rb") as stream:
        block = os.pread(stream.fileno(), _BLOCK, offset)
    return not block or block == bytes(_BLOCK)


def _cache_file(path: Path) -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(os.environ.get("LATENTAE_CACHE") or f"{base}/latentae").expanduser()
    facts = path.stat()
    key = f"{_VERSION}:{' '.join(IMAGE_SUFFIXES)}:{path.resolve()}:{facts.st_size}:{facts.st_mtime_ns}"
    return folder / "shards" / f"{hashlib.blake2b(key.encode(errors='surrogateescape')).hexdigest()[:32]}.npz"


def _from_cache(path: Path) -> TarIndex | None:
    file = _cache_file(path)
    if not file.is_file():
        return None
    try:
        with np.load(file, allow_pickle=False) as stored:
            names, damage = (stored[key].tobytes() for key in ("names", "damage"))
            return TarIndex(path, stored["offsets"], stored["sizes"], names, stored["ends"], damage.decode())
    except Exception:  # numpy and zipfile raise a dozen kinds; whatever is wrong, the tar file is still there
        return None


def _to_cache(index: TarIndex) -> None:
    file = _cache_file(index.path)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".tmp", delete=False) as stream:
            np.savez(
                stream,
                offsets=index.offsets,
                sizes=index.sizes,
                ends=index.ends,
                names=np.frombuffer(index.names, np.uint8),
                damage=np.frombuffer(index.damage.encode(), np.uint8),
            )
        Path(stream.name).replace(file)
    except OSError as error:  # costs time at every start, nothing else
        warnings.warn(
            f"latentae's cache {file.parent} cannot be written ({error.strerror}), so that the index of tar "
            "files is made anew at each start: set LATENTAE_CACHE to a folder that can be written",
            stacklevel=2,
        )
