"""Labels and captions in tar files: the members beside an image that are called like it."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from latentae.data.annotations import Annotations, number_labels
from latentae.data.tar import TarSource

_LABELS, _CAPTIONS = ("cls", "label", "class"), ("txt", "caption", "text")
_LARGEST_BYTES = 2**20  # of a member that says something about an image; others are something else

# (key of a sample, extension) -> where its bytes begin in the tar file, and how many there are
Members = dict[tuple[str, str], tuple[int, int]]


def tar_annotations(
    source: TarSource, label_column: str | None = None, caption_column: str | None = None
) -> Annotations:
    """What the members of each sample say about its image, by the conventions of WebDataset.

    Args:
        source: the images.
        label_column, caption_column: an extension, or a key in the JSON of the samples; None: `cls`, else the
            key label, cls or class, and `txt`, else the key caption, text or txt.

    Raises ValueError if no sample has what was asked for, or some have a label and others none.
    """
    with ThreadPoolExecutor(max_workers=16) as pool:
        members = list(pool.map(scan_members, [index.path for index in source.indexes]))
    reader = _Reader(source, members)
    label = _find(reader, "label_column", label_column, _LABELS)
    caption = _find(reader, "caption_column", caption_column, _CAPTIONS)
    if label is None:
        return Annotations(captions=None if caption is None else _text(caption))
    # What cannot be read of a damaged tar file is one image without annotations, which will be left out.
    values = [0 if reader.is_damage(index) else label(index) for index in range(len(source))]
    labels, names = number_labels(
        [value.strip() if isinstance(value, str) else value for value in values], source.name
    )
    return Annotations(labels, names, None if caption is None else _text(caption))


def scan_members(path: Path) -> Members:
    """All small members of a tar file; those of a damaged one as far as it can be read."""
    found: Members = {}
    try:
        with tarfile.open(path, "r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                if member.isreg() and member.size <= _LARGEST_BYTES:
                    found[_split(member.name)] = (member.offset_data, member.size)
    except (tarfile.TarError, ValueError, OverflowError):  # the images' own index tells of the damage
        return found
    return found


class _Reader:
    """Reads what lies beside image i."""

    def __init__(self, source: TarSource, members: list[Members]) -> None:
        self.source = source
        self.members = members

    def is_damage(self, index: int) -> bool:
        shard, position = self.source.place(index)
        return position == len(self.source.indexes[shard])

    def has(self, index: int, extension: str) -> bool:
        return self._locate(index, extension) is not None

    def text(self, index: int, extension: str) -> str | None:
        located = self._locate(index, extension)
        if located is None:
            return None
        path, offset, size = located
        with path.open("rb") as stream:
            return os.pread(stream.fileno(), size, offset).decode("utf-8", errors="replace")

    def field(self, index: int, key: str) -> Any:
        text = self.text(index, "json")
        if text is None:
            return None
        try:
            content = json.loads(text)
        except ValueError as error:
            raise ValueError(f"the .json beside {self.source.name(index)} cannot be read: {error}") from error
        return content.get(key) if isinstance(content, dict) else None

    def _locate(self, index: int, extension: str) -> tuple[Path, int, int] | None:
        shard, position = self.source.place(index)
        tar = self.source.indexes[shard]
        if position == len(tar):
            return None
        place = self.members[shard].get((_split(tar.name(position))[0], extension))
        return None if place is None else (tar.path, *place)


def _find(
    reader: _Reader, what: str, given: str | None, usual: tuple[str, ...]
) -> Callable[[int], Any] | None:
    """Reads the member or the JSON field of image i; None where no image has one."""
    images = range(len(reader.source))
    names = usual if given is None else (given,)
    for name in names[:1]:
        if any(reader.has(index, name) for index in images):
            return lambda index: reader.text(index, name)
    with_json = next((index for index in images if reader.has(index, "json")), None)
    for name in (*names[1:], names[0]):
        if with_json is not None and reader.field(with_json, name) is not None:
            return lambda index: reader.field(index, name)
    if given is not None:
        raise ValueError(f"{what} {given!r}: no sample has a member .{given}, nor that key in its .json")
    return None


def _text(read: Callable[[int], Any]) -> Callable[[int], str]:
    def caption(index: int) -> str:
        value = read(index)
        return "" if value is None else " ".join(str(value).split())

    return caption


def _split(name: str) -> tuple[str, str]:
    """The key of a member's sample, and its extension, in lower case."""
    folder, slash, file = name.removeprefix("./").rpartition("/")
    key, _, extension = file.partition(".")
    return folder + slash + key, extension.lower()
