"""Streamed tables: parquet and arrow files, and hub datasets, read as they come and copied nowhere."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from latentae.data.cells import choose_image_column, decode_cell, image_table
from latentae.data.decode import BrokenImageError
from latentae.data.folder import describe_files
from latentae.data.levels import ValueRange
from latentae.data.samples import EncodedImage
from latentae.data.table import check_one_kind, first_line, hub_errors, readable_columns, table_errors
from latentae.data.tar import shard_labels

_MOST_SHARDS = 1024  # data sets of single files have as many as images
_ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class StreamedTable:
    """A table that is read as it comes.

    Attributes:
        table: a `datasets.IterableDataset`.
        label: what it is called, usually the split.
        files: the names of its files.
        num_rows: of all its shards together; None: not known.
        is_local: all its files are on this machine.
        where: its files, for people; empty: nothing to say.
    """

    table: Any
    label: str
    files: Sequence[str] = ()
    num_rows: int | None = None
    is_local: bool = False
    where: str = ""


class TableShards:
    """The files of a streamed `datasets.IterableDataset` as `Shards`; rows are named `file[row]`.

    How many rows a shard has becomes known when it has been read once. It is then noted in `notes`, so that
    a later run can skip the shard without reading it.

    Args:
        stream: the table, and what is known of it.
        image_column: the column; None: see `choose_image_column`.
        value_range, max_pixels: see `decode_image`.
        notes: a folder for the numbers of rows; None, or not there: they are forgotten at the end.

    Raises ValueError if there is no such column or it cannot hold images.
    """

    def __init__(
        self,
        stream: StreamedTable,
        image_column: str | None = None,
        value_range: ValueRange | None = None,
        notes: Path | None = None,
        max_pixels: int | None = None,
    ) -> None:
        features = stream.table.features
        if features is None:
            raise ValueError(
                f"the table {stream.label!r} does not say what its columns hold: use parquet files"
            )
        self.column = choose_image_column(features, image_column)
        table, self._numbers = image_table(stream.table, self.column, features[self.column])
        self._table = table if self._numbers is not None else table.with_format("arrow")
        self.stream = stream
        self.value_range = value_range
        self.max_pixels = max_pixels
        self.notes = notes
        self._num_shards = min(stream.table.num_shards, _MOST_SHARDS)
        self._counts: dict[int, int] = {}

    def __len__(self) -> int:
        return self._num_shards

    def count(self, shard: int) -> int:
        known = self._counts.get(shard)
        if known is None:
            known = self._noted(shard)
        if known is None:
            for _ in self.read(shard, start=1 << 62):  # passes by all rows, and notes how many they were
                pass
            known = self._counts[shard]
        self._counts[shard] = known
        return known

    def typical_count(self) -> int:
        if self.stream.num_rows is not None:
            return self.stream.num_rows // len(self)
        return next((count for shard in range(len(self)) if (count := self.count(shard))), 0)

    def label(self, shard: int) -> str:
        files = self.stream.files
        return files[shard] if len(files) == len(self) else f"{self.stream.label}/{shard}"

    def describe(self) -> str:
        """Where the images are; for people."""
        where = self.stream.where or f"{len(self)} shard(s) of the split {self.stream.label!r}"
        return f"the column {self.column!r} of {where}"

    def read(self, shard: int, start: int = 0, step: int = 1) -> Iterator[EncodedImage]:
        row = 0
        damage = ""
        try:
            # Not `for ... in table`: in a loader's worker that yields only what `datasets` deals out to it.
            for batch in self._table.shard(self._num_shards, shard).iter(batch_size=_ROWS_AT_ONCE):
                column = batch[self.column]
                for position in range(len(column)):
                    if row >= start and (row - start) % step == 0:
                        cell = column[position]
                        yield self._encoded(shard, row, cell if self._numbers else cell.as_py())
                    row += 1
        except Exception as error:  # those of pyarrow, fsspec, httpx and the file system share no base
            damage = first_line(error)
            if not self._is_damage(error):
                where = self._name(shard, row)
                raise BrokenImageError(f"{where}: the stream broke off ({damage})") from error
        if damage:
            if row >= start and (row - start) % step == 0:
                yield self._damaged(shard, row, damage)
            row += 1
        self._note(shard, row)

    def _encoded(self, shard: int, row: int, cell: Any) -> EncodedImage:
        name = self._name(shard, row)
        load = partial(decode_cell, cell, name, self._numbers, self.value_range, self.max_pixels)
        return EncodedImage(name, load, row)

    def _damaged(self, shard: int, row: int, damage: str) -> EncodedImage:
        name = self._name(shard, row)
        return EncodedImage(name, partial(_raise, f"{name}: the rest of the file is damaged ({damage})"), row)

    def _is_damage(self, error: Exception) -> bool:
        """Whether a file's content is wrong, rather than out of reach for the moment."""
        # pyarrow raises ValueError, or OSError without a number, which over a network means anything.
        return isinstance(error, ValueError) or (
            self.stream.is_local and isinstance(error, OSError) and error.errno is None
        )

    def _name(self, shard: int, row: int) -> str:
        return f"{self.label(shard)}[{row}]"

    def _note_file(self, folder: Path, shard: int) -> Path:
        return folder / f"{self.stream.label.replace('/', '_')}_{shard}_of_{len(self)}"

    def _noted(self, shard: int) -> int | None:
        if self.notes is None:
            return None
        file = self._note_file(self.notes, shard)
        try:
            return int(file.read_text(encoding="ascii"))
        except (OSError, ValueError):  # not there, or cut short: then the shard is read once more
            return None

    def _note(self, shard: int, count: int) -> None:
        self._counts[shard] = count
        if self.notes is None or not self.notes.is_dir() or self._note_file(self.notes, shard).exists():
            return
        with contextlib.suppress(OSError):  # a note that cannot be written costs time, nothing else
            with tempfile.NamedTemporaryFile("w", dir=self.notes, delete=False) as stream:
                stream.write(str(count))
            Path(stream.name).replace(self._note_file(self.notes, shard))


def stream_table_files(files: Sequence[Path], label: str) -> StreamedTable:
    """Parquet or arrow files, each a shard.

    Raises ValueError if they are not all of one kind or cannot be read.
    """
    import datasets

    kind = check_one_kind(files).removeprefix(".")
    with table_errors(files):
        chosen, columns = readable_columns(files)
    if columns is not None and kind == "arrow":
        raise ValueError(
            f"{files[0]} and others have different columns, and arrow files cannot then be streamed: set "
            "streaming=false, which needs no copy of them"
        )
    with table_errors(files):
        names = [str(file.path) for file in chosen]
        options = {} if columns is None else {"columns": columns}
        table = datasets.load_dataset(
            kind, data_files={"train": names}, split="train", streaming=True, **options
        )
    files = [file.path for file in chosen]
    return StreamedTable(table, label, shard_labels(files), is_local=True, where=describe_files(files))


def stream_hub_dataset(name: str, dataset_config: str | None) -> dict[str, StreamedTable]:
    """Split -> table, of dataset `name` of the hub.

    Nothing is downloaded but what describes the data. Raises ValueError if there is no such dataset, it
    cannot be reached, or it has no such config.
    """
    import datasets

    with hub_errors(name, dataset_config):
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


def _raise(message: str, channels: int, minimum_side: int | None) -> Any:
    raise BrokenImageError(message)
