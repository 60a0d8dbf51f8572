"""Labels and captions of images, from folders, tables and tar files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentae.data.folder import FolderSource
from latentae.data.metadata import caption_of, metadata_captions
from latentae.data.source import CachedSource, ImageSource, SubsetSource
from latentae.data.table import TableSource
from latentae.data.tar import TarSource, open_other_members, split_name

# The usual names, in the order in which they are tried.
_LABEL_COLUMNS = ("label", "labels", "cls", "class", "class_label", "fine_label")
_CAPTION_COLUMNS = ("caption", "text", "prompt", "captions", "txt", "description")
_TAR_LABELS, _TAR_CAPTIONS = ("cls", "label", "class"), ("txt", "caption", "text")


@dataclass(frozen=True)
class Annotations:
    """Labels and captions of a source's images.

    Attributes:
        labels: int64 [n], 0 or more; None: the data have none.
        label_names: the names of classes 0, 1, …; None: they have no names.
        captions: returns the caption of image i, perhaps empty; None: the data have none.
    """

    labels: NDArray[np.int64] | None = None
    label_names: list[str] | None = None
    captions: Callable[[int], str] | None = field(default=None, repr=False)


def read_annotations(
    source: ImageSource, *, label_column: str | None = None, caption_column: str | None = None
) -> Annotations:
    """Reads the labels and captions of a source's images.

    Folders: if every image is in a subfolder and there are at least two of these, they are the classes, in
    alphabetic order. The caption of ``1.jpg`` is the text file ``1.txt`` beside it, or the column
    ``caption_column`` of a metadata file in the folder (see ``metadata_captions``).

    Tar files: the members ``key.cls`` and ``key.txt``, else the keys label, cls or class and caption, text
    or txt of ``key.json``.

    Tables: the column of type ClassLabel (if there are several, the one with a usual name), else a column of
    whole numbers or text with a usual name: label, labels, cls, class, class_label or fine_label. Captions: a
    column of text called caption, text, prompt, captions, txt or description. Of a list of captions the first
    is taken.

    Classes given as words are numbered in alphabetic order. Sources of other kinds have neither labels nor
    captions.

    Args:
        source: the images.
        label_column, caption_column: the column of a table (captions: also of a folder's metadata file), or
            the extension or the JSON key in tar files; None: the usual ones.

    Raises ValueError if a column is missing or holds something else, or if only some images have a label.
    """
    if isinstance(source, SubsetSource):
        whole = read_annotations(source.source, label_column=label_column, caption_column=caption_column)
        return _select(whole, source.indices)
    if isinstance(source, CachedSource):
        return read_annotations(source.source, label_column=label_column, caption_column=caption_column)
    if isinstance(source, TableSource):
        return _table_annotations(source, label_column, caption_column)
    if isinstance(source, TarSource):
        return _tar_annotations(source, label_column, caption_column)
    if label_column is not None:
        raise ValueError(
            f"label_column={label_column!r} is for tables and tar files, and these data are neither; in a "
            "folder of images its subfolders are the classes"
        )
    if isinstance(source, FolderSource):
        return _folder_annotations(source, caption_column)
    if caption_column is not None:
        raise ValueError(
            f"caption_column={caption_column!r} is for tables, tar files and folders of images with a "
            "metadata file, and these data are none of them: leave it out"
        )
    return Annotations()


def _select(whole: Annotations, indices: NDArray[np.int64]) -> Annotations:
    captions = whole.captions
    return Annotations(
        labels=None if whole.labels is None else whole.labels[indices],
        label_names=whole.label_names,
        captions=None if captions is None else lambda index: captions(int(indices[index])),
    )


def number_labels(
    values: Sequence[Any], name: Callable[[int], str]
) -> tuple[NDArray[np.int64], list[str] | None]:
    """Returns labels as numbers, and their names if they were words (digits are numbers).

    Args:
        values: whole numbers, or words.
        name: returns the name of image i for messages.

    Raises ValueError if a label is missing, negative, or neither a whole number nor a word.
    """
    for index, value in enumerate(values):
        if value is None or isinstance(value, bool) or not isinstance(value, int | np.integer | str):
            what = "no label" if value is None else f"the label {value!r}, neither a whole number nor a word"
            raise ValueError(f"{name(index)} has {what}: give each image one, or leave labels out")
    words = [str(value).strip() for value in values]
    if not all(word.removeprefix("-").isdecimal() for word in words):
        names = sorted(set(words))
        numbers = {word: number for number, word in enumerate(names)}
        return np.array([numbers[word] for word in words], np.int64), names
    labels = np.array([int(word) for word in words], np.int64)
    if len(labels) and labels.min() < 0:
        index = int(labels.argmin())
        raise ValueError(
            f"{name(index)} has the label {labels[index]}, and labels begin at 0: leave them out"
        )
    return labels, None


# Folders


def _folder_annotations(source: FolderSource, caption_column: str | None) -> Annotations:
    names = [source.name(index) for index in range(len(source))]
    classes = sorted({name.partition("/")[0] for name in names if "/" in name})
    labels = None
    if len(classes) > 1 and all("/" in name for name in names):
        numbers = {name: number for number, name in enumerate(classes)}
        labels = np.array([numbers[name.partition("/")[0]] for name in names], np.int64)
    label_names = None if labels is None else classes
    if caption_column is not None:
        return Annotations(labels, label_names, metadata_captions(source, caption_column).__getitem__)

    def caption(index: int) -> str:
        file = (source.folder / names[index]).with_suffix(".txt")
        return caption_of(file.read_text(encoding="utf-8")) if file.is_file() else ""

    has_captions = any((source.folder / name).with_suffix(".txt").is_file() for name in names)
    return Annotations(labels, label_names, caption if has_captions else None)


# Tables


def _table_annotations(
    source: TableSource, label_column: str | None, caption_column: str | None
) -> Annotations:
    features = source.table.features
    label = _find_column(source, "label_column", label_column, _choose_label)
    caption = _find_column(source, "caption_column", caption_column, _choose_caption)
    labels, names = None, None
    if label is not None:
        values = list(source.table.with_format(None).select_columns([label])[:][label])
        names = getattr(features[label], "names", None)
        # A split whose labels are secret has -1 for each image.
        if names is None or label_column is not None or any(value != -1 for value in values):
            labels, words = number_labels(values, source.name)
            names = words if names is None else list(names)
        else:
            names = None
    if caption is None:
        return Annotations(labels, names)
    cells = source.table.with_format(None).select_columns([caption])
    return Annotations(labels, names, lambda index: caption_of(cells[index][caption]))


def _find_column(
    source: TableSource, option: str, given: str | None, choose: Callable[[dict[str, Any]], str | None]
) -> str | None:
    features = source.table.features
    if given is None:
        return choose({name: kind for name, kind in features.items() if name != source.image_column})
    if given not in features:
        raise ValueError(f"{option} {given!r} is not there; columns: {', '.join(features)}")
    return given


def _choose_label(features: dict[str, Any]) -> str | None:
    import datasets

    classes = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    if len(classes) == 1:
        return classes[0]
    whole = ("int", "uint")
    plain = [
        name
        for name, kind in features.items()
        if _is_text(kind) or str(getattr(kind, "dtype", "")).startswith(whole)
    ]
    return next((name for name in _LABEL_COLUMNS if name in (classes or plain)), None)


def _choose_caption(features: dict[str, Any]) -> str | None:
    texts = [name for name, kind in features.items() if _is_text(kind) or _is_text(_element(kind))]
    return next((name for name in _CAPTION_COLUMNS if name in texts), None)


def _element(kind: Any) -> Any:
    return kind[0] if isinstance(kind, list) else getattr(kind, "feature", None)


def _is_text(kind: Any) -> bool:
    return getattr(kind, "dtype", None) in ("string", "large_string", "string_view")


# Tar files


def _tar_annotations(source: TarSource, label_column: str | None, caption_column: str | None) -> Annotations:
    reader = _MemberReader(source)
    label = _find_member(reader, "label_column", label_column, _TAR_LABELS)
    read_caption = _find_member(reader, "caption_column", caption_column, _TAR_CAPTIONS)
    captions = None if read_caption is None else lambda index: caption_of(read_caption(index))
    if label is None:
        return Annotations(captions=captions)
    # The unreadable rest of a damaged tar file is one image without annotations, which will be left out.
    values = [0 if reader.is_damage(index) else label(index) for index in range(len(source))]
    labels, names = number_labels(
        [value.strip() if isinstance(value, str) else value for value in values], source.name
    )
    return Annotations(labels, names, captions)


class _MemberReader:
    """Reads the members beside the images: those whose names differ in the extension only."""

    def __init__(self, source: TarSource) -> None:
        self.source = source
        with ThreadPoolExecutor(max_workers=16) as pool:
            self.members = list(pool.map(open_other_members, [index.path for index in source.indexes]))
        # For each tar file: (key of a sample, extension) -> position among its members.
        self.positions = [
            {_key_and_extension(name): position for position, name in enumerate(members.all_names())}
            for members in self.members
        ]

    def is_damage(self, index: int) -> bool:
        shard, position = self.source.place(index)
        return position == len(self.source.indexes[shard])

    def has(self, index: int, extension: str) -> bool:
        return self._find(index, extension) is not None

    def text(self, index: int, extension: str) -> str | None:
        found = self._find(index, extension)
        if found is None:
            return None
        shard, position = found
        return self.members[shard].read(position).decode("utf-8", errors="replace")

    def field(self, index: int, key: str) -> Any:
        """Returns the value of a key in the JSON of a sample."""
        text = self.text(index, "json")
        if text is None:
            return None
        try:
            content = json.loads(text)
        except ValueError as error:
            raise ValueError(f"the .json beside {self.source.name(index)} cannot be read: {error}") from error
        return content.get(key) if isinstance(content, dict) else None

    def _find(self, index: int, extension: str) -> tuple[int, int] | None:
        if self.is_damage(index):
            return None
        shard, position = self.source.place(index)
        key, _ = _key_and_extension(self.source.indexes[shard].name(position))
        found = self.positions[shard].get((key, extension))
        return None if found is None else (shard, found)


def _key_and_extension(name: str) -> tuple[str, str]:
    key, extension = split_name(name)
    return key, extension.lower()


def _find_member(
    reader: _MemberReader, option: str, given: str | None, usual: tuple[str, ...]
) -> Callable[[int], Any] | None:
    """Returns a function that reads the member or JSON field of image i; None if no image has one."""
    images = range(len(reader.source))
    names = usual if given is None else (given,)
    if any(reader.has(index, names[0]) for index in images):
        return lambda index: reader.text(index, names[0])
    with_json = next((index for index in images if reader.has(index, "json")), None)
    for name in (*names[1:], names[0]):
        if with_json is not None and reader.field(with_json, name) is not None:
            return lambda index: reader.field(index, name)
    if given is not None:
        raise ValueError(f"{option} {given!r}: no sample has a member .{given}, nor that key in its .json")
    return None
