"""Images and tables in local folders: what is there, and which part of it is which split."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from latentae.data.decode import IMAGE_SUFFIXES, decode_image
from latentae.data.image_source import Pixels
from latentae.data.levels import ValueRange

_SPLIT_WORDS = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}


class FolderSource:
    """Every image file below `folder`, sorted by its path, which is its name.

    Suffixes count in any case; files and folders whose name begins with a dot do not; links are
    followed. `value_range` is `decode_image`'s. Raises ValueError if the folder is not there or holds no
    image.
    """

    def __init__(self, folder: str | Path, value_range: ValueRange | None = None) -> None:
        self.folder = Path(folder)
        self.value_range = value_range
        self._names = sorted(walk_files(self.folder, IMAGE_SUFFIXES))
        if not self._names:
            raise ValueError(
                f"no image in the folder {self.folder}: sought {', '.join(IMAGE_SUFFIXES)} at any depth, "
                f"found {_describe_files(self.folder)}"
            )

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return self._names[index]

    def load(self, index: int, channels: int, minimum_side: int | None = None) -> Pixels:
        name = self._names[index]
        return decode_image(
            self.folder / name, channels, minimum_side=minimum_side, name=name, value_range=self.value_range
        )


def walk_files(folder: Path, suffixes: tuple[str, ...] = ("",)) -> Iterator[str]:
    """Visible files below `folder` that end in one of the suffixes, as relative paths with slashes."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    seen: set[str] = set()
    for parent, subfolders, files in os.walk(folder, followlinks=True, onerror=_raise_unreadable):
        real = os.path.realpath(parent)
        if real in seen:  # a link back to a folder above
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        relative = Path(parent).relative_to(folder).as_posix()
        prefix = "" if relative == "." else relative + "/"
        for name in files:
            if not name.startswith(".") and name.lower().endswith(suffixes):
                yield prefix + name


def has_files(folder: Path, suffixes: tuple[str, ...]) -> bool:
    """Whether there is a visible file with one of the suffixes at any depth of `folder`."""
    return next(walk_files(folder, suffixes), None) is not None


def split_word(name: str) -> str | None:
    """The split that a name stands for (`val`, `valid` and `validation` are one), or None."""
    return _SPLIT_WORDS.get(name.lower())


def split_files(folder: Path, suffixes: tuple[str, ...]) -> dict[str, list[Path]]:
    """Split -> the files below `folder` with one of the suffixes that belong to it, sorted.

    A file's split is a word of its name, else of its folders' from the inside out, as in
    `data/validation-00000-of-00002.parquet`; without any it is train's.
    """
    splits: dict[str, list[Path]] = {}
    for name in sorted(walk_files(folder, suffixes)):
        splits.setdefault(_split_of(name), []).append(folder / name)
    return splits


def _split_of(name: str) -> str:
    for part in reversed(Path(name).with_suffix("").parts):
        for word in re.split(r"[^a-z]+", part.lower()):
            split = split_word(word)
            if split is not None:
                return split
    return "train"


def split_subfolders(folder: Path) -> dict[str, Path]:
    """Split -> subfolder, where `folder` is divided into splits; else empty.

    It is where every visible subfolder is named after a split, or `train` and another split are among
    them: a folder of classes may well have one class called "train". Files beside them do not count.
    """
    visible = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    splits: dict[str, Path] = {}
    for path in visible:
        split = split_word(path.name)
        if split is None:
            continue
        if split in splits:
            raise ValueError(f"{splits[split]} and {path} are both the split {split!r}: rename one of them")
        splits[split] = path
    is_divided = len(splits) == len(visible) or ("train" in splits and len(splits) > 1)
    return splits if is_divided else {}


def _describe_files(folder: Path) -> str:
    """What the folder holds in the place of what was sought, e.g. "3 of .txt, 1 of .gif"."""
    counts = Counter(Path(name).suffix.lower() or "no suffix" for name in walk_files(folder))
    if not counts:
        return "no file at all"
    return ", ".join(f"{count} of {suffix}" for suffix, count in counts.most_common(5))


def _raise_unreadable(error: OSError) -> None:
    raise ValueError(f"the folder {error.filename} cannot be read: {error.strerror}") from error
