"""Tables as ``datasets`` opens them: parquet and arrow files, saved datasets, and the Hugging Face hub."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from latentae.data.names import describe_files, shard_labels
from latentae.data.table_cells import choose_image_column

TABLE_SUFFIXES = (".parquet", ".arrow")


@dataclass(frozen=True)
class TableFile:
    """A parquet or arrow file, the ``pyarrow.Schema`` of its columns, and its number of rows."""

    path: Path
    schema: Any
    num_rows: int


@dataclass(frozen=True)
class StreamedTable:
    """A table that is read without being copied.

    Attributes:
        table: a ``datasets.IterableDataset``.
        label: its name, usually the split.
        files: the names of its files.
        num_rows: of all its shards together; None: unknown.
        is_local: all its files are on this machine.
        where: says where its files are; may be empty.
    """

    table: Any
    label: str
    files: Sequence[str] = ()
    num_rows: int | None = None
    is_local: bool = False
    where: str = ""


def saved_splits(folder: Path) -> dict[str, Path]:
    """Returns split -> folder for what ``save_to_disk`` of a Dataset or DatasetDict wrote; else empty."""
    if (folder / "state.json").is_file():
        return {"train": folder}
    return {path.parent.name: path.parent for path in sorted(folder.glob("*/state.json"))}


def open_table_files(files: Sequence[Path]) -> tuple[Any, list[TableFile]]:
    """Opens files as one ``datasets.Dataset``; also returns the files that its rows are from, in order.

    Arrow files are memory-mapped in place. Parquet is converted once, into the cache of ``datasets``. Files
    without rows are left out. If the files have different columns, those that all have are kept.
    Raises ValueError if the files are not of one kind or cannot be read together.
    """
    import datasets

    is_arrow = _check_one_kind(files) == ".arrow"
    with _table_errors(files):
        chosen, columns = _readable_columns(files)
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


def stream_table_files(files: Sequence[Path], label: str) -> StreamedTable:
    """Streams parquet or arrow files, each as a shard.

    Raises ValueError if the files are not of one kind or cannot be read.
    """
    import datasets

    kind = _check_one_kind(files).removeprefix(".")
    with _table_errors(files):
        chosen, columns = _readable_columns(files)
    if columns is not None and kind == "arrow":
        raise ValueError(
            f"{files[0]} and others have different columns, and arrow files cannot then be streamed: set "
            "streaming=false, which needs no copy of them"
        )
    with _table_errors(files):
        names = [str(file.path) for file in chosen]
        options = {} if columns is None else {"columns": columns}
        table = datasets.load_dataset(
            kind, data_files={"train": names}, split="train", streaming=True, **options
        )
    files = [file.path for file in chosen]
    return StreamedTable(table, label, shard_labels(files), is_local=True, where=describe_files(files))


def count_table_images(path: Path) -> int:
    """Counts the rows of a table file with a column of images; 0 for any other or damaged file."""
    import datasets
    import pyarrow

    try:
        file = _inspect_table_file(path)
        features = datasets.Features.from_arrow_schema(file.schema)
        column = choose_image_column(features)
    except (ValueError, OSError, pyarrow.ArrowException):
        return 0
    # Text beside pictures holds their names.
    kind = file.schema.field(column).type
    is_text = pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)
    return 0 if is_text else file.num_rows


def _inspect_table_file(path: Path) -> TableFile:
    """Reads the columns and the number of rows from the header or footer of a file."""
    import datasets
    import pyarrow.parquet

    if path.suffix.lower() == ".arrow":
        table = datasets.Dataset.from_file(str(path))
        return TableFile(path, table.data.schema, len(table))
    with pyarrow.parquet.ParquetFile(path) as file:
        return TableFile(path, file.schema_arrow, file.metadata.num_rows)


def _readable_columns(files: Sequence[Path]) -> tuple[list[TableFile], list[str] | None]:
    """Returns the files with rows (all files if none has rows), and the columns that all of these have.

    The columns are None if the files agree. Raises ValueError if they have none in common.
    """
    inspected = [_inspect_table_file(path) for path in files]
    chosen = [file for file in inspected if file.num_rows] or inspected
    if all(file.schema.equals(chosen[0].schema) for file in chosen):
        return chosen, None
    common = [name for name in chosen[0].schema.names if all(name in file.schema.names for file in chosen)]
    if not common:
        raise ValueError(f"{chosen[0].path} and others have no column in common")
    return chosen, common


def _check_one_kind(files: Sequence[Path]) -> str:
    """Returns the suffix of all files; raises ValueError if there are two."""
    suffixes = sorted({path.suffix.lower() for path in files})
    if len(suffixes) > 1:
        raise ValueError(f"{files[0].parent} mixes {' and '.join(suffixes)} files: keep one kind")
    return suffixes[0]


def prepare_hub_dataset(name: str, dataset_config: str | None) -> Any:
    """Downloads dataset ``name`` of the hub unless it is cached, and returns its builder.

    The builder knows its splits (``.info.splits``) and opens one with ``.as_dataset(split=...)``. Raises
    ValueError if there is no such dataset, it cannot be reached, or it has no such config.
    """
    import datasets

    with _hub_errors(name, dataset_config):
        builder = datasets.load_dataset_builder(name, dataset_config)
        builder.download_and_prepare()
    return builder


def stream_hub_dataset(name: str, dataset_config: str | None) -> dict[str, StreamedTable]:
    """Returns split -> table for dataset ``name`` of the hub.

    Only what describes the data is downloaded. Raises ValueError if there is no such dataset, it cannot be
    reached, or it has no such config.
    """
    import datasets

    with _hub_errors(name, dataset_config):
        builder = datasets.load_dataset_builder(name, dataset_config)
        tables = dict(builder.as_streaming_dataset())
        files = builder.config.data_files or {}
        known = builder.info.splits or {}
        return {
            split: StreamedTable(
                table,
                split,
                [str(file).rpartition("/")[2] for file in files.get(split, [])],
                (known[split].num_examples or None) if split in known else None,
            )
            for split, table in tables.items()
        }


@contextmanager
def _table_errors(files: Sequence[Path]) -> Iterator[None]:
    """Turns every error into a ValueError that names the files, or the cache of ``datasets``."""
    try:
        yield
    except Exception as error:  # errors of pyarrow, datasets and the file system share no base
        raise ValueError(
            _unwritable_cache()
            or f"cannot read {files[0]} ({len(files)} file(s) of its split): {first_line(error)}"
        ) from error


@contextmanager
def _hub_errors(name: str, dataset_config: str | None) -> Iterator[None]:
    """Turns every error into a ValueError that says what to check."""
    try:
        yield
    except Exception as error:  # errors of the hub, httpx and datasets share no base
        chosen = "" if dataset_config is None else f" (dataset_config {dataset_config!r})"
        cache = _unwritable_cache()
        if cache is not None:
            raise ValueError(f"name {name!r}: {cache}") from error
        raise ValueError(
            f"name {name!r}{chosen} is neither 'photos', nor a file or folder here, and as a dataset of the "
            f"Hugging Face hub it failed: {first_line(error)}. Check its spelling and dataset_config, the "
            "network (HF_HUB_OFFLINE) and your login, or give the path of a folder of images"
        ) from error


def _unwritable_cache() -> str | None:
    """Says that the cache of ``datasets`` cannot be written; None if it can."""
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


def first_line(error: BaseException) -> str:
    """Returns the type of an error and the first line of its message."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
