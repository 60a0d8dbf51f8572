"""Images in a column of a table: parquet and arrow files, saved `datasets`, and the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latentae.data.arrays import to_pixels
from latentae.data.decode import BrokenImageError, decode_image
from latentae.data.folder import split_word, walk_files
from latentae.data.image_source import Pixels

TABLE_SUFFIXES = (".parquet", ".arrow")
_COLUMN_NAMES = ("image", "img", "jpg", "png")


class TableSource:
    """The images of one column of a map-style `datasets.Dataset`, named `label[row]`.

    Args:
        dataset: a `datasets.Dataset`.
        label: what rows are called, usually the split.
        image_column: the column; None: the one of type Image (if several: the one of a usual name),
            else one named image, img, jpg or png, else the one of type Array2D or Array3D. It may hold
            files' bytes, paths, or both (see `decode_image`), or arrays (see `to_pixels`).

    Raises ValueError if there is no such column or it cannot hold images.
    """

    def __init__(self, dataset: Any, label: str, image_column: str | None = None) -> None:
        import datasets

        self.label = label
        self.image_column = find_image_column(dataset, image_column)
        feature = dataset.features[self.image_column]
        self._array_dtype: str | None = None
        if isinstance(feature, (datasets.Array2D, datasets.Array3D)):
            self._array_dtype = feature.dtype
            self._dataset = dataset.select_columns([self.image_column]).with_format("numpy")
        else:
            self._dataset = self._undecoded(dataset)
        if len(self._dataset) == 0:
            raise ValueError(f"the split {label!r} has no rows")

    def _undecoded(self, dataset: Any) -> Any:
        import datasets

        try:
            # Undecoded, so that one decoder with one set of rules serves every source.
            return dataset.select_columns([self.image_column]).cast_column(
                self.image_column, datasets.Image(decode=False)
            )
        except (TypeError, ValueError, NotImplementedError) as error:  # pyarrow's derive from these
            raise ValueError(
                f"image_column {self.image_column!r} holds {dataset.features[self.image_column]}, no images: "
                f"choose one of {', '.join(dataset.column_names)}"
            ) from error

    def __len__(self) -> int:
        return len(self._dataset)

    def name(self, index: int) -> str:
        return f"{self.label}[{index}]"

    def load(self, index: int, channels: int, minimum_side: int | None = None) -> Pixels:
        name = self.name(index)
        cell = self._dataset[index][self.image_column]
        if self._array_dtype is not None:
            # `datasets` shows a row without an array as NaN, and whole numbers as int64.
            if cell.dtype.kind == "f" and np.isnan(cell).all():
                raise BrokenImageError(f"{name}: the row has no image")
            try:
                return to_pixels(cell.astype(self._array_dtype), channels)
            except ValueError as error:
                raise BrokenImageError(f"{name}: {error}") from error
        if cell is None or (cell["bytes"] is None and cell["path"] is None):
            raise BrokenImageError(f"{name}: the row has no image")
        data = Path(cell["path"]) if cell["bytes"] is None else cell["bytes"]
        return decode_image(data, channels, minimum_side=minimum_side, name=name)


def find_image_column(dataset: Any, image_column: str | None = None) -> str:
    """The name of the column with the images; ValueError listing the columns if there is none."""
    import datasets

    columns: list[str] = dataset.column_names
    if image_column is not None:
        if image_column not in columns:
            raise ValueError(f"image_column {image_column!r} is not there; columns: {', '.join(columns)}")
        return image_column
    images, arrays = (
        [name for name in columns if isinstance(dataset.features[name], kinds)]
        for kinds in (datasets.Image, (datasets.Array2D, datasets.Array3D))
    )
    if len(images) == 1:
        return images[0]
    named = [name for name in _COLUMN_NAMES if name in (images or columns)]
    if named:
        return named[0]
    if not images and len(arrays) == 1:
        return arrays[0]
    problem = "several image columns" if images or arrays else "no image column"
    raise ValueError(f"{problem}; set image_column to one of {', '.join(columns)}")


def table_files(folder: Path) -> dict[str, list[Path]]:
    """Split -> the parquet and arrow files below `folder` that belong to it, sorted.

    A file's split is a word of its name, else of its folders' from the inside out, as in
    `data/validation-00000-of-00002.parquet`; without any it is train's.
    """
    splits: dict[str, list[Path]] = {}
    for name in sorted(walk_files(folder, TABLE_SUFFIXES)):
        splits.setdefault(_split_of(name), []).append(folder / name)
    return splits


def saved_splits(folder: Path) -> dict[str, Path]:
    """Split -> folder, for what `save_to_disk` of a Dataset or DatasetDict wrote; else empty."""
    if (folder / "state.json").is_file():
        return {"train": folder}
    return {path.parent.name: path.parent for path in sorted(folder.glob("*/state.json"))}


def open_table_files(files: Sequence[Path]) -> Any:
    """One `datasets.Dataset` of all these files, either all parquet or all arrow.

    Arrow files are mapped into memory where they lie. Parquet is converted once, into the cache of
    `datasets`. Raises ValueError if they cannot be read together.
    """
    import datasets

    suffixes = {path.suffix.lower() for path in files}
    if len(suffixes) > 1:
        raise ValueError(f"{files[0].parent} mixes {' and '.join(sorted(suffixes))} files: keep one kind")
    names = [str(path) for path in files]
    try:
        if suffixes == {".arrow"}:
            return datasets.concatenate_datasets([datasets.Dataset.from_file(name) for name in names])
        return datasets.Dataset.from_parquet(names)
    except Exception as error:  # pyarrow's, datasets' and the file system's errors share no base
        raise ValueError(
            f"cannot read {names[0]} ({len(names)} file(s) of its split): {_first_line(error)}"
        ) from error


def open_saved(folder: Path) -> Any:
    """The `datasets.Dataset` that `save_to_disk` wrote into `folder`."""
    import datasets

    return datasets.load_from_disk(str(folder))


def prepare_hub_dataset(name: str, dataset_config: str | None) -> Any:
    """Download dataset `name` of the hub, if its cache does not hold it, and return its builder.

    The builder knows its splits (`.info.splits`) and opens one by `.as_dataset(split=...)`. Raises
    ValueError if there is no such dataset, it cannot be reached, or it has no such config.
    """
    import datasets

    try:
        builder = datasets.load_dataset_builder(name, dataset_config)
        builder.download_and_prepare()
    except Exception as error:  # the hub's, httpx's and datasets' errors share no base
        chosen = "" if dataset_config is None else f" (dataset_config {dataset_config!r})"
        raise ValueError(
            f"name {name!r}{chosen} is neither 'photos', nor a file or folder here, and as a dataset of the "
            f"Hugging Face hub it failed: {_first_line(error)}. Check its spelling and dataset_config, the "
            "network (HF_HUB_OFFLINE) and your login, or give the path of a folder of images"
        ) from error
    return builder


def _split_of(name: str) -> str:
    for part in reversed(Path(name).with_suffix("").parts):
        for word in re.split(r"[^a-z]+", part.lower()):
            split = split_word(word)
            if split is not None:
                return split
    return "train"


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
