"""From the name of the data to its images: `photos`, a path, or a dataset of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from latentae.data.arrays import ARRAY_SUFFIXES
from latentae.data.decode import PICTURE_SUFFIXES
from latentae.data.folder import FolderSource, has_files, split_subfolders, split_word
from latentae.data.holdout import split_holdout
from latentae.data.image_source import ImageSource
from latentae.data.photos import training_photos, validation_photos
from latentae.data.table import (
    TABLE_SUFFIXES,
    TableSource,
    open_saved,
    open_table_files,
    prepare_hub_dataset,
    saved_splits,
    table_files,
)

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Sources:
    """The images of a training run; no image is in both."""

    train: ImageSource
    validation: ImageSource


@dataclass(frozen=True)
class _Splits:
    """The splits that data has, and how to open one of them."""

    names: list[str]
    open: Callable[[str], ImageSource]


def open_source(
    name: str, *, split: str = "train", image_column: str | None = None, dataset_config: str | None = None
) -> ImageSource:
    """The images of one split of the data called `name`.

    Args:
        name: `photos` (built in: see latentae.data.photos); or the path of a folder of images, of a
            parquet or arrow file, of a folder of such files, or of what `datasets` saved to disk; or the id
            of a dataset on the Hugging Face hub. In the same folder pictures win over tables, and tables over
            arrays (.npy).
        split: a folder has the splits that its subfolders or its tables' names say (train; val, valid or
            validation; test), and otherwise the one split `train`, like a single file. For the hub, any
            split expression of `datasets`, such as `train[:10%]`.
        image_column: for tables, the column with the images; None: found by its type or name.
        dataset_config: for the hub, the configuration of a dataset that has several.

    Raises:
        ValueError: there are no such data, no such split or column, or no image in them.
    """
    splits = _find_splits(name, image_column, dataset_config)
    return splits.open(_match_split(name, split, splits.names))


def open_sources(
    name: str,
    *,
    split: str = "train",
    image_column: str | None = None,
    dataset_config: str | None = None,
    holdout: float = 0.05,
) -> Sources:
    """The images to train with (`split`), and those to validate with.

    Validation takes the split `validation` (or `val`, `valid`), else `test`, else about the share
    `holdout` of the training images, which are then not trained with: see `split_holdout`. The other
    arguments and the errors are those of `open_source`.
    """
    splits = _find_splits(name, image_column, dataset_config)
    training_split = _match_split(name, split, splits.names)
    train = splits.open(training_split)
    for wanted in ("validation", "test"):
        for candidate in splits.names:
            if split_word(candidate) == wanted and candidate != training_split.partition("[")[0]:
                return Sources(train, splits.open(candidate))
    return Sources(*split_holdout(train, holdout))


def _find_splits(name: str, image_column: str | None, dataset_config: str | None) -> _Splits:
    if not name:
        raise ValueError("name is empty: give 'photos', the path of a folder of images, or a hub dataset")
    path = Path(name).expanduser()
    is_local = name == "photos" or path.exists()
    if dataset_config is not None and is_local:
        raise ValueError(f"dataset_config={dataset_config!r} belongs to datasets of the hub, not to {name!r}")
    if name == "photos":
        _refuse_image_column(name, image_column)
        makers: dict[str, Callable[[], ImageSource]] = {
            "train": training_photos,
            "validation": validation_photos,
        }
    elif path.is_dir():
        makers = _folder_splits(path, image_column)
    elif path.is_file():
        if not path.name.lower().endswith(TABLE_SUFFIXES):
            raise ValueError(
                f"name {name!r} is one file; give a folder of images, or a .parquet or .arrow file"
            )
        makers = {"train": partial(_open_files, [path], "train", image_column)}
    else:
        _check_hub_id(name)
        return _hub_splits(name, image_column, dataset_config)

    def open_split(split: str) -> ImageSource:
        if split not in makers:
            raise ValueError(f"split {split!r} of {name!r}: only datasets of the hub can be sliced")
        return makers[split]()

    return _Splits(list(makers), open_split)


def _folder_splits(folder: Path, image_column: str | None) -> dict[str, Callable[[], ImageSource]]:
    saved = saved_splits(folder)
    if saved:
        return {split: partial(_open_saved, path, split, image_column) for split, path in saved.items()}
    image_folders = split_subfolders(folder) or {"train": folder}

    def holds(suffixes: tuple[str, ...]) -> bool:
        return any(has_files(path, suffixes) for path in image_folders.values())

    has_pictures = holds(PICTURE_SUFFIXES)
    tables = {} if has_pictures else table_files(folder)
    # Beside tables an array is more likely something about them than an image.
    if has_pictures or (not tables and holds(ARRAY_SUFFIXES)):
        _refuse_image_column(str(folder), image_column)
        return {split: partial(FolderSource, path) for split, path in image_folders.items()}
    if not tables:
        FolderSource(folder)  # raises, saying what was sought and what is there
    return {split: partial(_open_files, files, split, image_column) for split, files in tables.items()}


def _hub_splits(name: str, image_column: str | None, dataset_config: str | None) -> _Splits:
    builder = prepare_hub_dataset(name, dataset_config)

    def open_split(split: str) -> ImageSource:
        return TableSource(builder.as_dataset(split=split), split, image_column)

    return _Splits(list(builder.info.splits), open_split)


def _open_files(files: list[Path], split: str, image_column: str | None) -> ImageSource:
    return TableSource(open_table_files(files), split, image_column)


def _open_saved(folder: Path, split: str, image_column: str | None) -> ImageSource:
    return TableSource(open_saved(folder), split, image_column)


def _match_split(name: str, split: str, names: list[str]) -> str:
    """The name in `names` that `split` means: itself, or for `val` and the like another word for it."""
    base, bracket, part = split.partition("[")
    if base in names:
        return split
    for candidate in names:
        if split_word(base) is not None and split_word(candidate) == split_word(base):
            return candidate + bracket + part
    raise ValueError(f"split {split!r} is not in {name!r}; there are: {', '.join(names)}")


def _check_hub_id(name: str) -> None:
    """Raise ValueError where `name` must have been meant as a path: there is nothing at it."""
    first = name.partition("/")[0]
    if not _HUB_ID.fullmatch(name) or first in (".", "..") or ("/" in name and Path(first).exists()):
        raise ValueError(
            f"name {name!r} looks like a path and does not exist (the working folder is {Path.cwd()})"
        )


def _refuse_image_column(name: str, image_column: str | None) -> None:
    if image_column is not None:
        raise ValueError(f"image_column={image_column!r} is for tables, and {name!r} holds image files")
