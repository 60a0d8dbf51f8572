"""Images in a column of a table: map-style (``TableSource``) or streamed file by file (``TableShards``)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from latentae.data.arrays import ValueRange
from latentae.data.decode import BrokenImageError, Pixels
from latentae.data.names import describe_files
from latentae.data.source import EncodedImage, broken_image
from latentae.data.table_cells import choose_image_column, decode_cell, image_table
from latentae.data.table_files import StreamedTable, TableFile, first_line
from latentae.files import write_aside

_MOST_SHARDS = 1024  # some data sets have as many files as images
_ROWS_AT_ONCE = 64


class TableSource:
    """The images of one column of a map-style ``datasets.Dataset``, named ``label[row]``.

    Args:
        dataset: a ``datasets.Dataset``.
        label: the name of the rows, usually the split.
        image_column: the column; None: see ``choose_image_column``. It may hold the bytes of files, paths, or
            both (see ``decode_image``), arrays (see ``to_pixels``), or nested lists of numbers (see
            ``decode_cell``).
        value_range, max_pixels: see ``decode_image``.
        files: the files that the rows are from, in order; None: unknown.

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
        self.image_column = choose_image_column(dataset.features, image_column)
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
        """Returns what decides whether image ``index`` is held out: its file and row there, if known."""
        if self.files is None:
            return self.name(index)
        number = int(np.searchsorted(self._ends, index, side="right"))
        file = self.files[number]
        return f"{file.path.name}[{index - int(self._ends[number]) + file.num_rows}]"

    def describe(self) -> str:
        """Says how many images there are, and where."""
        where = f"the column {self.image_column!r} of the split {self.label!r}"
        if self.files is not None:
            where = f"the column {self.image_column!r} of {describe_files([f.path for f in self.files])}"
        return f"{len(self)} rows in {where}"

    def load(self, index: int, channels: int, minimum_side: int | None = None) -> Pixels:
        cell = self._dataset[index][self.image_column]
        return decode_cell(
            cell, self.name(index), self._numbers, self.value_range, self.max_pixels, channels, minimum_side
        )


class TableShards:
    """The files of a streamed ``datasets.IterableDataset`` as ``Shards``. Rows are named ``file[row]``.

    The number of rows of a shard is known once it has been read. It is then noted in ``notes``, so that a
    later run can skip the shard without reading it.

    Args:
        stream: the table, and what is known about it.
        image_column: the column; None: see ``choose_image_column``.
        value_range, max_pixels: see ``decode_image``.
        notes: a folder for the numbers of rows; None, or a missing folder: they are not kept.

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
            for _ in self.read(shard, start=1 << 62):  # skips all rows and notes their number
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
        where = self.stream.where or f"{len(self)} shard(s) of the split {self.stream.label!r}"
        return f"the column {self.column!r} of {where}"

    def read(self, shard: int, start: int = 0, step: int = 1) -> Iterator[EncodedImage]:
        row = 0
        damage = ""
        try:
            # Not `for ... in table`, which in a loader's worker yields only that worker's rows.
            for batch in self._table.shard(self._num_shards, shard).iter(batch_size=_ROWS_AT_ONCE):
                column = batch[self.column]
                for position in range(len(column)):
                    if row >= start and (row - start) % step == 0:
                        cell = column[position]
                        yield self._encoded(shard, row, cell if self._numbers else cell.as_py())
                    row += 1
        except Exception as error:  # errors of pyarrow, fsspec, httpx and the file system share no base
            damage = first_line(error)
            if not self._is_damage(error):
                where = self._name(shard, row)
                raise BrokenImageError(f"{where}: the stream broke off ({damage})") from error
        if damage:
            if row >= start and (row - start) % step == 0:
                reason = f"the rest of the file is damaged ({damage})"
                yield broken_image(self._name(shard, row), reason, row)
            row += 1
        self._note(shard, row)

    def _encoded(self, shard: int, row: int, cell: Any) -> EncodedImage:
        name = self._name(shard, row)
        load = partial(decode_cell, cell, name, self._numbers, self.value_range, self.max_pixels)
        return EncodedImage(name, load, row)

    def _is_damage(self, error: Exception) -> bool:
        """Whether the content of a file is wrong, rather than out of reach for the moment."""
        # pyarrow raises ValueError, or OSError without a number, which can mean anything over a network.
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
        try:
            return int(self._note_file(self.notes, shard).read_text(encoding="ascii"))
        except (OSError, ValueError):  # missing or damaged: the shard is read once more
            return None

    def _note(self, shard: int, count: int) -> None:
        self._counts[shard] = count
        if self.notes is None or not self.notes.is_dir() or self._note_file(self.notes, shard).exists():
            return
        with contextlib.suppress(OSError):  # without the note a later run takes longer, nothing else
            write_aside(self._note_file(self.notes, shard), str(count).encode())
