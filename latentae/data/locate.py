"""Finds what the name of some data means: their kind, and which files belong to which split."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from latentae.data.arrays import ARRAY_SUFFIXES
from latentae.data.decode import IMAGE_SUFFIXES, PICTURE_SUFFIXES, BrokenImageError
from latentae.data.folder import (
    Division,
    FolderSource,
    divide_folder,
    has_files,
    is_output,
    split_files,
    split_of_file,
    split_word,
    walk_files,
)
from latentae.data.metadata import METADATA_NAMES
from latentae.data.names import count_by_suffix, expand_pattern, is_pattern, similar_paths, suffix_of
from latentae.data.table_files import TABLE_SUFFIXES, count_table_images, saved_splits
from latentae.data.tar import TAR_SUFFIXES, open_tar
from latentae.files import exists

BUILTIN = "builtin:photos"
"""The unambiguous name of the built-in photographs."""

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_HUB_ADDRESS = re.compile(r"(?:hf://datasets/|https?://(?:www\.)?huggingface\.co/datasets/)([^?#]+?)/?")
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_UNPACK = {".gz": "gunzip", ".tgz": "gunzip", ".bz2": "bunzip2", ".xz": "unxz", ".zst": "unzstd"}
_COMPRESSED_TARS = tuple(suffix if suffix == ".tgz" else ".tar" + suffix for suffix in _UNPACK)

Kind = Literal["photos", "images", "tars", "tables", "saved", "hub"]


@dataclass(frozen=True)
class Located:
    """The location that `data.name` stands for.

    Attributes:
        kind: `photos` (built in), `images` (folders or files), `tars`, `tables` (parquet or arrow files),
            `saved` (by `datasets`), or `hub`.
        splits: split -> its files or folders; empty for photos and the hub, which know their own splits.
        hub_id: the id on the hub; empty for other kinds.
        remarks: sentences on anything that may not be as intended.
    """

    kind: Kind
    splits: dict[str, list[Path]] = field(default_factory=dict)
    hub_id: str = ""
    remarks: tuple[str, ...] = ()


def locate(name: str) -> Located:
    """Finds the data called `name`: see `DataSelection`.

    Raises ValueError if nothing has that name, if it holds no data, or if the name is ambiguous.
    """
    if not name:
        raise ValueError("name is empty: give 'photos', the path of a folder of images, or a hub dataset")
    if name == BUILTIN:
        return Located("photos")
    path = Path(name).expanduser()
    if name == "photos":
        if path.exists():
            raise ValueError(
                f"name 'photos' means the built-in photographs, and there is {path.absolute()}, too: "
                f"write './photos' for the latter, or '{BUILTIN}' for the built-in ones"
            )
        return Located("photos")
    if exists(path) and path.is_dir():
        return _locate_folder(path)
    if exists(path) and path.is_file():
        return _locate_files(name, [path])
    hub_address = _HUB_ADDRESS.fullmatch(name)
    if hub_address is not None:
        return Located("hub", hub_id=_id_at_address(name, hub_address[1]))
    check_address(name)
    if is_pattern(name):
        return _locate_files(name, expand_pattern(name))
    _check_length(path)
    check_hub_id(name)
    return Located("hub", hub_id=name)


def match_split(name: str, split: str, names: Sequence[str]) -> str:
    """Returns the name in `names` that `split` means: itself, or for `val` and the like a synonym."""
    base, bracket, part = split.partition("[")
    if base in names:
        return split
    for candidate in names:
        if split_word(base) is not None and split_word(candidate) == split_word(base):
            return candidate + bracket + part
    raise ValueError(f"split {split!r} is not in {name!r}; there are: {', '.join(names)}")


def validation_split(names: Sequence[str], training_split: str) -> str | None:
    """Returns the split to measure on: `validation` (or `val`, `valid`), else `test`, else None."""
    for wanted in ("validation", "test"):
        for candidate in names:
            if split_word(candidate) == wanted and candidate != training_split.partition("[")[0]:
                return candidate
    return None


def check_address(name: str) -> None:
    """Raises ValueError if `name` is the address of something on another machine."""
    address = _ADDRESS.match(name)
    if address is not None and address[1].lower() == "file":
        raise ValueError(f"name {name!r} is an address (file://): give the path alone")
    if address is not None:
        raise ValueError(
            f"name {name!r} is an address ({address[1]}://), and images are read from files of this machine "
            "or from a dataset of the Hugging Face hub (owner/name): copy the files here, or mount the "
            "storage, and give their path"
        )


def check_hub_id(name: str) -> None:
    """Raises ValueError if `name` must be a path, at which there is nothing."""
    first = name.partition("/")[0]
    is_id = bool(_HUB_ID.fullmatch(name)) and first not in (".", "..")
    if not is_id or ("/" in name and Path(first).exists()):
        near = [repr(str(path)) for path in similar_paths(Path(name).expanduser())]
        meant = f": did you mean {' or '.join(near)}?" if near else ""
        instead = f"; for the dataset of the hub write 'hf://datasets/{name}'" if is_id else ""
        raise ValueError(
            f"name {name!r} looks like a path and does not exist (the working folder is {Path.cwd()})"
            f"{meant}{instead}"
        )


def _id_at_address(name: str, found: str) -> str:
    if _HUB_ID.fullmatch(found) is None:
        raise ValueError(
            f"name {name!r} is the address of a part or a version of a dataset on the Hugging Face hub: give "
            "the whole dataset, as owner/name"
        )
    return found


def _check_length(path: Path) -> None:
    """Raises ValueError for a path that is too long for the file system."""
    try:
        path.exists()
    except OSError as error:
        shown = f"{str(path)[:60]}..."
        raise ValueError(f"name {shown!r} cannot be a path here: {error.strerror}") from error


def _locate_files(name: str, files: list[Path]) -> Located:
    suffixes = {path.suffix.lower() for path in files}
    kinds: dict[Kind, tuple[str, ...]] = {"tars": TAR_SUFFIXES, "tables": TABLE_SUFFIXES}
    if len(files) > 1 or is_pattern(name):
        kinds["images"] = IMAGE_SUFFIXES
    for kind, known in kinds.items():
        if suffixes <= set(known):
            return Located(kind, {"train": files}, remarks=_of_other_splits(files))
    compressed = next((path for path in files if path.name.lower().endswith(_COMPRESSED_TARS)), None)
    if compressed is not None:
        raise ValueError(_compressed(compressed))
    if files[0].name in METADATA_NAMES:
        raise ValueError(
            f"name {name!r} is a list of images in a folder; give the folder, {files[0].parent} (and for the "
            "captions in it `latentae encode` has --caption-column)"
        )
    what = "is one file" if len(files) == 1 else f"stands for {len(files)} files"
    counts = count_by_suffix(Counter(suffix_of(path.name) for path in files))
    raise ValueError(
        f"name {name!r} {what}; give a folder of images, or .tar, .parquet or .arrow files or a pattern of "
        f"image files, all of one kind ({counts} here)"
    )


def _of_other_splits(files: list[Path]) -> tuple[str, ...]:
    """Remarks that the names of some files of a pattern state another split than the others'."""
    others = [path for path in files if split_of_file(path.name) != "train"]
    if not others or len(others) == len(files):
        return ()
    return (f"a pattern is one split, also with the {len(others)} file(s) such as {others[0]} in it",)


def _locate_folder(folder: Path) -> Located:
    saved = saved_splits(folder)
    if saved:
        return Located("saved", {split: [path] for split, path in saved.items()})
    if is_output(folder):
        raise ValueError(
            f"{folder} holds the output of latentae, such as a run's sample pictures, and no images to read: "
            "give the folder of the images"
        )
    division = divide_folder(folder)
    image_folders = [path for paths in division.folders.values() for path in paths]

    def holds(suffixes: tuple[str, ...]) -> bool:
        return any(has_files(path, suffixes) for path in image_folders)

    containers = _find_containers(folder)
    images = Located("images", division.folders, remarks=_remarks(folder, division))
    if holds(PICTURE_SUFFIXES):
        for kind, splits in containers.items():
            files = [path for paths in splits.values() for path in paths]
            _check_pictures_take_precedence(folder, image_folders, kind, files)
        return images
    for kind, splits in containers.items():
        if splits:
            return Located(kind, splits, remarks=_left_out(folder, splits))
    # An array beside tables more likely describes them than is an image.
    if holds(ARRAY_SUFFIXES):
        return images
    packed = next(walk_files(folder, _COMPRESSED_TARS), None)
    if packed is not None:
        raise ValueError(_compressed(folder / packed))
    FolderSource(folder)  # raises an error that says what was sought and what was found
    return images


def _find_containers(folder: Path) -> dict[Kind, dict[str, list[Path]]]:
    """Does `split_files` for tar files and for tables, without tables that describe a folder's images."""
    containers: dict[Kind, dict[str, list[Path]]] = {"tars": {}, "tables": {}}
    for split, paths in split_files(folder, (*TAR_SUFFIXES, *TABLE_SUFFIXES)).items():
        for path in paths:
            if path.name not in METADATA_NAMES:
                kind: Kind = "tars" if path.suffix.lower() in TAR_SUFFIXES else "tables"
                containers[kind].setdefault(split, []).append(path)
    return containers


def _remarks(folder: Path, division: Division) -> tuple[str, ...]:
    remarks = []
    if division.unused:
        names = ", ".join(str(path) for path in division.unused[:5])
        remarks.append(f"left out {len(division.unused)} folder(s) that belong to no split: {names}")
    if division.undivided:
        names = ", ".join(str(path) for path in division.undivided[:5])
        remarks.append(
            f"{names}: used like all other images, since {folder} is not divided into folders for train and "
            "for another split"
        )
    if folder not in [path for paths in division.folders.values() for path in paths]:
        with os.scandir(folder) as entries:
            beside = Counter(suffix_of(e.name) for e in entries if e.name.lower().endswith(IMAGE_SUFFIXES))
        if beside:
            remarks.append(f"left out {count_by_suffix(beside)} in {folder} that belong to no split")
    return tuple(remarks)


def _left_out(folder: Path, splits: dict[str, list[Path]]) -> tuple[str, ...]:
    """Remarks on the files of a folder that are not read."""
    read = {path for paths in splits.values() for path in paths}
    others = Counter(suffix_of(name) for name in walk_files(folder) if folder / name not in read)
    return (f"left out {count_by_suffix(others)} in {folder}",) if others else ()


def _check_pictures_take_precedence(
    folder: Path, image_folders: list[Path], kind: Kind, files: list[Path]
) -> None:
    """Raises ValueError if tar files or tables beside pictures hold more images than there are pictures.

    As many or fewer may be an archive of the same pictures; if there are more, the pictures may only
    illustrate them.
    """
    if not files:
        return
    pictures = [path / name for path in image_folders for name in walk_files(path, PICTURE_SUFFIXES)]
    count_images: Callable[[Path], int] = _count_tar_images if kind == "tars" else count_table_images
    count = 0
    for path in files:
        count += count_images(path)
        if count > len(pictures):
            what = "tar" if kind == "tars" else "parquet or arrow"
            raise ValueError(
                f"{folder} holds {len(pictures)} picture file(s), and {len(files)} {what} file(s) with more "
                f"images than that ({count} or more): give {_name_only(files, pictures)!r} as the name of "
                f"the data to read the {what} files, or {_name_only(pictures, files)!r} to read the pictures"
            )


def _count_tar_images(path: Path) -> int:
    try:
        return len(open_tar(path))
    except BrokenImageError:  # a file that cannot be opened counts as empty
        return 0


def _name_only(wanted: list[Path], others: list[Path]) -> str:
    """Returns a name for these files and not the others: the folder that holds them, or a pattern."""
    common = Path(os.path.commonpath([path.parent for path in wanted]))
    if not any(path.is_relative_to(common) for path in others):
        return str(common)
    suffixes = sorted({path.suffix.removeprefix(".") for path in wanted})
    ending = suffixes[0] if len(suffixes) == 1 else f"{{{','.join(suffixes)}}}"
    return f"{common}/**/*.{ending}"


def _compressed(path: Path) -> str:
    program = next(unpack for suffix, unpack in _UNPACK.items() if path.name.lower().endswith(suffix))
    return (
        f"{path}: a compressed tar file can only be read from its beginning, and images hardly shrink: "
        f"unpack it, e.g. with {program}"
    )
