"""Metadata files beside images: the rows of metadata.csv, .jsonl or .parquet name files and describe them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from posixpath import join, normpath
from typing import Any

from latentae.data.folder import FolderSource, word_in
from latentae.data.table_files import open_table_files

METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Their names, as in the imagefolder of `datasets`."""

_FILE_NAME = "file_name"


def metadata_captions(source: FolderSource, column: str) -> list[str]:
    """Returns the caption of each image, from the metadata files of its folder.

    A metadata file may lie in any folder from an image's up to the source's; if the source's folder is named
    after a split (`train`, `val2017`), also in the folder above. Its rows name files relative to its folder,
    in the column `file_name`. The innermost of several files counts. Of a list the first element is taken; a
    missing value is an empty caption.

    Args:
        source: the images.
        column: the column of the captions.

    Raises ValueError if there is no such file, or two in one folder; if a file cannot be read or lacks a
    column; if an image has no row, or two in one file; or if a row names a file that does not exist.
    """
    files = _find_files(source)
    if not files:
        raise ValueError(
            f"caption_column={column!r}: {source.folder} has none of {', '.join(METADATA_NAMES)} to read "
            f"it from; put one beside the images, with the columns {_FILE_NAME} and {column}, or leave "
            "caption_column out, which reads captions from text files (1.txt beside 1.jpg)"
        )
    names = [_full_name(source, source.name(index)) for index in range(len(source))]
    known, captions = set(names), dict[str, str]()
    for path, prefix in files.items():
        captions |= _read_captions(path, prefix, column, known)
    without = [index for index, name in enumerate(names) if name not in captions]
    if without:
        raise ValueError(
            f"{source.folder / source.name(without[0])} has no row in {' or '.join(map(str, files))} "
            f"({len(without)} of {len(names)} images have none); add the rows, move these images elsewhere, "
            "or leave caption_column out"
        )
    return [captions[name] for name in names]


def unread_columns(source: FolderSource) -> str | None:
    """Says which columns of metadata files go unread if no captions are asked for; None if there are none."""
    try:
        files = list(_find_files(source))
        columns = dict.fromkeys(column for path in files for row in _rows(path) for column in row)
    except ValueError as error:  # nobody asked for these files
        return f"no metadata are carried along: {error}"
    columns.pop(_FILE_NAME, None)
    if not columns:
        return None
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    return (
        f"{files[0]}{more}: the column(s) {', '.join(columns)} are not carried along; --caption-column NAME "
        "takes one of them as captions"
    )


def _find_files(source: FolderSource) -> dict[Path, str]:
    """Returns metadata file -> its folder (see `_full_name`), outermost first; at most one per folder."""
    inner = {""}
    for name in {source.name(index).rpartition("/")[0] for index in range(len(source))}:
        while name not in inner:
            inner.add(name)
            name = name.rpartition("/")[0]
    folders = [_full_name(source, name) for name in sorted(inner)]  # a folder sorts before what is in it
    if word_in(source.folder.name) is not None:
        folders.insert(0, "")
    found: dict[Path, str] = {}
    for folder in folders:
        paths = [source.folder.parent / folder / name for name in METADATA_NAMES]
        here = [path for path in paths if path.is_file()]
        if len(here) > 1:
            raise ValueError(
                f"{here[0].parent} has {' and '.join(path.name for path in here)}; keep one of them"
            )
        found |= dict.fromkeys(here, folder)
    return found


def _full_name(source: FolderSource, name: str) -> str:
    """Makes a path relative to the folder above the source's, where a metadata file may lie."""
    return normpath(join(source.folder.name, name))


def _read_captions(path: Path, folder: str, column: str, known: set[str]) -> dict[str, str]:
    """Returns full name -> caption, from one metadata file."""
    captions: dict[str, str] = {}
    columns: dict[str, None] = {}
    for number, row in enumerate(_rows(path), 1):
        columns |= dict.fromkeys(row)
        file = row.get(_FILE_NAME)
        if not isinstance(file, str) or not file:
            raise ValueError(
                f"{path}: row {number} has nothing in the column {_FILE_NAME!r} (columns: {', '.join(row)}); "
                "it must be the path of the image relative to this file's folder"
            )
        name = normpath(join(folder, file))
        if name not in known and not (path.parent / file).is_file():
            raise ValueError(
                f"{path}: row {number} names {file!r}, which does not exist ({path.parent / file}); correct "
                "the row, or remove it"
            )
        if name in captions:
            raise ValueError(f"{path}: row {number} is the second one of {file!r}; keep one row per image")
        captions[name] = caption_of(row.get(column))
    if captions and column not in columns:
        raise ValueError(f"{path}: caption_column {column!r} is not there; columns: {', '.join(columns)}")
    return captions


def caption_of(cell: Any) -> str:
    """Returns a value as a caption in one line: the first element of a list, nothing as an empty one."""
    if isinstance(cell, list | tuple):
        cell = cell[0] if cell else None
    return "" if cell is None else " ".join(str(cell).split())


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the rows of a metadata file. Raises ValueError if it cannot be read."""
    if path.suffix == ".parquet":
        yield from open_table_files([path])[0].with_format(None)
        return
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # Excel writes a byte order mark
            yield from _csv_rows(file) if path.suffix == ".csv" else _json_rows(file)
    except (ValueError, csv.Error, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _csv_rows(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    reader = csv.DictReader(lines, strict=True)
    for row in reader:
        if None in row or None in row.values():
            raise ValueError(
                f"line {reader.line_num} does not have the {len(reader.fieldnames or ())} fields of the "
                "header; put text with commas between double quotes"
            )
        yield row


def _json_rows(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number} is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise ValueError(f'line {number} is not an object such as {{"file_name": ...}}')
        yield row
