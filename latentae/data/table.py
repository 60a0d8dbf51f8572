"""Images in a column of a table: parquet and arrow files, saved `datasets`, and the Hugging Face hub."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from latentae.data.cells import choose_image_column, decode_cell, image_table
from latentae.data.folder import describe_files, split_files
from latentae.data.image_source import Pixels
from latentae.data.levels import ValueRange

TABLE_SUFFIXES = (".parquet", ".arrow")


class TableSource:
    """The images of one column of a map-style `datasets.Dataset`, named `label[row]`.

    Args:
        dataset: a `datasets.Dataset`.
        label: what rows are called, usually the split.
        image_column: the column; None: see `choose_image_column`. It may hold files' bytes, paths, or both
            (see `decode_image`), arrays (see `to_pixels`), or nested lists of numbers (see `decode_cell`).
        value_range, max_pixels: see `decode_image`.
        files: those that the rows are from, in their order; None: not known.

    Raises ValueError if there is no such column or it cannot hold images.
    """

    def __init__(
        self,
        dataset: Any,
        label: str,
        image_column: str | None = None,
        value_range: ValueRange | None = None,
        files: Sequence[TableFile] | None = None,
        *,
        max_pixels: int | None = None,
    ) -> None:
        self.files = files
        self._ends = np.cumsum([file.num_rows for file in files or ()])
        self.label = label
        self.table = dataset
        self.value_range = value_range
        self.max_pixels = max_pixels
        self.image_column = find_image_column(dataset, image_column)
        try:
            feature = dataset.features[self.image_column]
            self._dataset, self._numbers = image_table(dataset, self.image_column, feature)
        except ValueError as error:
            others = [name for name in dataset.column_names if name != self.image_column]
            remedy = f"; other columns: {', '.join(others)}" if others else ""
            raise ValueError(f"{error}{remedy}") from error
        if len(self._dataset) == 0:
            raise ValueError(f"the split {label!r} has no rows")

    def __len__(self) -> int:
        return len(self._dataset)

    def name(self, index: int) -> str:
        return f"{self.label}[{index}]"

    def key(self, index: int) -> str:
        """What decides whether image `index` is held out: its file's name and its row there, if known."""
        if self.files is None:
            return self.name(index)
        number = int(np.searchsorted(self._ends, index, side="right"))
        file = self.files[number]
        return f"{file.path.name}[{index - int(self._ends[number]) + file.num_rows}]"

    def describe(self) -> str:
        """How many images there are, and where; for people."""
        where = f"the column {self.image_column!r} of the split {self.label!r}"
        if self.files is not None:
            where = f"the column {self.image_column!r} of {describe_files([f.path for f in self.files])}"
        return f"{len(self)} rows in {where}"

    def load(self, index: int, channels: int, minimum_side: int | None = None) -> Pixels:
        cell = self._dataset[index][self.image_column]
        return decode_cell(
            cell, self.name(index), self._numbers, self.value_range, self.max_pixels, channels, minimum_side
        )


def find_image_column(dataset: Any, image_column: str | None = None) -> str:
    """The name of a `datasets.Dataset`'s column with the images: see `choose_image_column`."""
    return choose_image_column(dataset.features, image_column)


def table_files(folder: Path) -> dict[str, list[Path]]:
    """Split -> the parquet and arrow files below `folder` that belong to it, sorted: see `split_files`."""
    return split_files(folder, TABLE_SUFFIXES)


def saved_splits(folder: Path) -> dict[str, Path]:
    """Split -> folder, for what `save_to_disk` of a Dataset or DatasetDict wrote; else empty."""
    if (folder / "state.json").is_file():
        return {"train": folder}
    return {path.parent.name: path.parent for path in sorted(folder.glob("*/state.json"))}


@dataclass(frozen=True)
class TableFile:
    """A parquet or arrow file: what its columns hold, a `pyarrow.Schema`, and how many rows it has."""

    path: Path
    schema: Any
    num_rows: int


def open_table_files(files: Sequence[Path]) -> Any:
    """One `datasets.Dataset` of all these files, either all parquet or all arrow.

    Arrow files are mapped into memory where they lie. Parquet is converted once, into the cache of
    `datasets`. Files without rows do not count; of files with different columns, those that all have are
    kept. Raises ValueError if they cannot be read together.
    """
    return join_table_files(files)[0]


def join_table_files(files: Sequence[Path]) -> tuple[Any, list[TableFile]]:
    """What `open_table_files` returns, and the files that its rows are from, in their order."""
    import datasets

    is_arrow = check_one_kind(files) == ".arrow"
    with table_errors(files):
        chosen, columns = readable_columns(files)
        parts = []
        for _, group in groupby(chosen, key=lambda file: file.schema):
            paths = [str(file.path) for file in group]
            opened = (
                [datasets.Dataset.from_file(path) for path in paths]
                if is_arrow
                else [datasets.Dataset.from_parquet(paths)]
            )
            parts += [part if columns is None else part.select_columns(columns) for part in opened]
        # A cast writes a copy of the table into the cache.
        kinds = parts[0].features
        parts = [part if part.features == kinds else part.cast(kinds) for part in parts]
        return datasets.concatenate_datasets(parts) if len(parts) > 1 else parts[0], chosen


def inspect_table_file(path: Path) -> TableFile:
    """Columns and number of rows of a file, read from where it describes itself."""
    import datasets
    import pyarrow.parquet

    if path.suffix.lower() == ".arrow":
        table = datasets.Dataset.from_file(str(path))
        return TableFile(path, table.data.schema, len(table))
    with pyarrow.parquet.ParquetFile(path) as file:
        return TableFile(path, file.schema_arrow, file.metadata.num_rows)


def readable_columns(files: Sequence[Path]) -> tuple[list[TableFile], list[str] | None]:
    """The files that have rows (all of them where none has), and the columns that all of these have.

    The columns are None where the files do not differ in them. Raises ValueError if they have none in common.
    """
    inspected = [inspect_table_file(path) for path in files]
    chosen = [file for file in inspected if file.num_rows] or inspected
    if all(file.schema.equals(chosen[0].schema) for file in chosen):
        return chosen, None
    common = [name for name in chosen[0].schema.names if all(name in file.schema.names for file in chosen)]
    if not common:
        raise ValueError(f"{chosen[0].path} and others have no column in common")
    return chosen, common


def count_table_images(path: Path) -> int:
    """The rows of a parquet or arrow file that has a column of images; 0 for another, or a damaged one."""
    import datasets
    import pyarrow

    try:
        file = inspect_table_file(path)
        features = datasets.Features.from_arrow_schema(file.schema)
        column = choose_image_column(features)
    except (ValueError, OSError, pyarrow.ArrowException):
        return 0
    # Text beside pictures names them.
    is_text = pyarrow.types.is_string(kind := file.schema.field(column).type) or (
        pyarrow.types.is_large_string(kind)
    )
    return 0 if is_text else file.num_rows


def check_one_kind(files: Sequence[Path]) -> str:
    """The suffix of all the files. Raises ValueError where there are two."""
    suffixes = sorted({path.suffix.lower() for path in files})
    if len(suffixes) > 1:
        raise ValueError(f"{files[0].parent} mixes {' and '.join(suffixes)} files: keep one kind")
    return suffixes[0]


@contextmanager
def table_errors(files: Sequence[Path]) -> Iterator[None]:
    """Turns whatever fails in its body into a ValueError that names the files, or the cache of `datasets`."""
    try:
        yield
    except Exception as error:  # pyarrow's, datasets' and the file system's errors share no base
        raise ValueError(
            unwritable_cache()
            or f"cannot read {files[0]} ({len(files)} file(s) of its split): {first_line(error)}"
        ) from error


def unwritable_cache() -> str | None:
    """The sentence on the cache of `datasets`, where nothing can be written into it; None: it can."""
    import datasets

    folder = Path(datasets.config.HF_DATASETS_CACHE)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return (
            f"the cache of `datasets`, {folder}, cannot be written ({error.strerror}), and tables are "
            "converted into it: set HF_DATASETS_CACHE to a folder that can be written"
        )


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

    with hub_errors(name, dataset_config):
        builder = datasets.load_dataset_builder(name, dataset_config)
        builder.download_and_prepare()
    return builder


@contextmanager
def hub_errors(name: str, dataset_config: str | None) -> Iterator[None]:
    """Turns whatever fails in its body into a ValueError that says what to check."""
    try:
        yield
    except Exception as error:  # the hub's, httpx's and datasets' errors share no base
        chosen = "" if dataset_config is None else f" (dataset_config {dataset_config!r})"
        cache = unwritable_cache()
        if cache is not None:
            raise ValueError(f"name {name!r}: {cache}") from error
        raise ValueError(
            f"name {name!r}{chosen} is neither 'photos', nor a file or folder here, and as a dataset of the "
            f"Hugging Face hub it failed: {first_line(error)}. Check its spelling and dataset_config, the "
            "network (HF_HUB_OFFLINE) and your login, or give the path of a folder of images"
        ) from error


def first_line(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
