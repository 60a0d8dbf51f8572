"""From the name of the data to what it is and which files belong to which split."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from latentae.data.arrays import ARRAY_SUFFIXES
from latentae.data.decode import PICTURE_SUFFIXES
from latentae.data.folder import FolderSource, has_files, split_files, split_subfolders, split_word
from latentae.data.metadata import METADATA_NAMES
from latentae.data.patterns import expand_pattern, is_pattern, is_there
from latentae.data.table import TABLE_SUFFIXES, saved_splits
from latentae.data.tar import TAR_SUFFIXES

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")

Kind = Literal["photos", "images", "tars", "tables", "saved", "hub"]


@dataclass(frozen=True)
class Located:
    """What data are: `photos` (built in), a folder of `images`, `tars`, `tables` (parquet or arrow files),
    what `datasets` `saved`, or on the `hub`.

    Attributes:
        splits: split -> its files or its folder; empty for photos and the hub, which know theirs.
    """

    kind: Kind
    splits: dict[str, list[Path]] = field(default_factory=dict)


def locate(name: str) -> Located:
    """Finds the data called `name`: see `open_source`.

    Raises ValueError if there is nothing of that name, or nothing in it.
    """
    if not name:
        raise ValueError("name is empty: give 'photos', the path of a folder of images, or a hub dataset")
    if name == "photos":
        return Located("photos")
    path = Path(name).expanduser()
    if is_there(path) and path.is_dir():
        return _locate_folder(path)
    if is_there(path) and path.is_file():
        return _locate_files(name, [path])
    if is_pattern(name):
        return _locate_files(name, expand_pattern(name))
    _check_length(path)
    check_hub_id(name)
    return Located("hub")


def match_split(name: str, split: str, names: Sequence[str]) -> str:
    """The name in `names` that `split` means: itself, or for `val` and the like another word for it."""
    base, bracket, part = split.partition("[")
    if base in names:
        return split
    for candidate in names:
        if split_word(base) is not None and split_word(candidate) == split_word(base):
            return candidate + bracket + part
    raise ValueError(f"split {split!r} is not in {name!r}; there are: {', '.join(names)}")


def validation_split(names: Sequence[str], training_split: str) -> str | None:
    """Which split to measure on: `validation` (or `val`, `valid`), else `test`, else none."""
    for wanted in ("validation", "test"):
        for candidate in names:
            if split_word(candidate) == wanted and candidate != training_split.partition("[")[0]:
                return candidate
    return None


def check_hub_id(name: str) -> None:
    """Raise ValueError where `name` must have been meant as a path: there is nothing at it."""
    first = name.partition("/")[0]
    if not _HUB_ID.fullmatch(name) or first in (".", "..") or ("/" in name and Path(first).exists()):
        raise ValueError(
            f"name {name!r} looks like a path and does not exist (the working folder is {Path.cwd()})"
        )


def _check_length(path: Path) -> None:
    """Raises ValueError for a path that the file system cannot have."""
    try:
        path.exists()
    except OSError as error:
        shown = f"{str(path)[:60]}..."
        raise ValueError(f"name {shown!r} cannot be a path here: {error.strerror}") from error


def _locate_files(name: str, files: list[Path]) -> Located:
    suffixes = {path.suffix.lower() for path in files}
    if suffixes <= set(TAR_SUFFIXES):
        return Located("tars", {"train": files})
    if suffixes <= set(TABLE_SUFFIXES):
        return Located("tables", {"train": files})
    if any(path.name.lower().endswith(_COMPRESSED_TARS) for path in files):
        raise ValueError(_compressed(files[0]))
    if files[0].name in METADATA_NAMES:
        raise ValueError(
            f"name {name!r} is a list of images in a folder; give the folder, {files[0].parent} (and for the "
            "captions in it `latentae encode` has --caption-column)"
        )
    what = "is one file" if len(files) == 1 else f"stands for {len(files)} files"
    raise ValueError(
        f"name {name!r} {what}; give a folder of images, or .tar, .parquet or .arrow files, all of one kind"
    )


def _locate_folder(folder: Path) -> Located:
    saved = saved_splits(folder)
    if saved:
        return Located("saved", {split: [path] for split, path in saved.items()})
    image_folders = split_subfolders(folder) or {"train": folder}

    def holds(suffixes: tuple[str, ...]) -> bool:
        return any(has_files(path, suffixes) for path in image_folders.values())

    images = Located("images", {split: [path] for split, path in image_folders.items()})
    if holds(PICTURE_SUFFIXES):
        return images
    kinds: dict[Kind, tuple[str, ...]] = {"tars": TAR_SUFFIXES, "tables": TABLE_SUFFIXES}
    for kind, suffixes in kinds.items():
        splits = split_files(folder, suffixes)
        if splits:
            return Located(kind, splits)
    # Beside tables an array is more likely something about them than an image.
    if holds(ARRAY_SUFFIXES):
        return images
    if has_files(folder, _COMPRESSED_TARS):
        raise ValueError(_compressed(folder))
    FolderSource(folder)  # raises, saying what was sought and what is there
    return images


def _compressed(path: Path) -> str:
    return (
        f"{path}: a compressed tar file can only be read from its beginning, and images hardly shrink: "
        "unpack it, e.g. with gunzip"
    )
