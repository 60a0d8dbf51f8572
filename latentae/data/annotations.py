"""What data say about their images besides pixels: a class each, or a sentence each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentae.data.folder import FolderSource
from latentae.data.image_source import CachedSource, ImageSource, SubsetSource
from latentae.data.metadata import metadata_captions


@dataclass(frozen=True)
class Annotations:
    """Labels and captions of a source's images.

    Attributes:
        labels: int64 [n], 0 or more; None: the data have none.
        label_names: of classes 0, 1, …; None: they have no names.
        captions: the sentence of image i, perhaps empty; None: the data have none.
    """

    labels: NDArray[np.int64] | None = None
    label_names: list[str] | None = None
    captions: Callable[[int], str] | None = field(default=None, repr=False)


def read_annotations(
    source: ImageSource, *, label_column: str | None = None, caption_column: str | None = None
) -> Annotations:
    """Labels and captions of a source's images, as its kind of data keeps them.

    A folder: where every image is in a subfolder, and there are two of these or more, they are the classes,
    in alphabetic order; a text file beside an image and called like it (`1.txt` for `1.jpg`) is its caption,
    or the column `caption_column` of a metadata file in the folder (see `metadata_captions`).
    Tar files: the members `key.cls` and `key.txt`, or `label` and `caption` in `key.json`. Tables: the column
    of type ClassLabel, or one called label, and one of text called caption, text or prompt. Classes given as
    words are numbered in alphabetic order. A source of any other kind has neither.

    Args:
        label_column, caption_column: the column of a table (captions: or of a folder's metadata file), or the
            extension or the JSON key in tar files; None: the usual ones.

    Raises ValueError if a column is not there or holds something else, or some images have a label and others
    none.
    """
    from latentae.data.table import TableSource
    from latentae.data.table_annotations import table_annotations
    from latentae.data.tar import TarSource
    from latentae.data.tar_annotations import tar_annotations

    if isinstance(source, SubsetSource):
        whole = read_annotations(source.source, label_column=label_column, caption_column=caption_column)
        return _select(whole, source.indices)
    if isinstance(source, CachedSource):
        return read_annotations(source.source, label_column=label_column, caption_column=caption_column)
    if isinstance(source, TableSource):
        return table_annotations(source, label_column, caption_column)
    if isinstance(source, TarSource):
        return tar_annotations(source, label_column, caption_column)
    if label_column is not None:
        raise ValueError(
            f"label_column={label_column!r} is for tables and tar files, and these data are neither; in a "
            "folder of images its subfolders are the classes"
        )
    if isinstance(source, FolderSource):
        return _of_folder(source, caption_column)
    if caption_column is not None:
        raise ValueError(
            f"caption_column={caption_column!r} is for tables, tar files and folders of images with a "
            "metadata file, and these data are none of them: leave it out"
        )
    return Annotations()


def number_labels(
    values: Sequence[Any], name: Callable[[int], str]
) -> tuple[NDArray[np.int64], list[str] | None]:
    """Labels as numbers, and their names where they were words (digits are numbers).

    Args:
        values: whole numbers, or words.
        name: what image i is called in an error.

    Raises ValueError where one is missing, negative, or neither.
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


def _select(whole: Annotations, indices: NDArray[np.int64]) -> Annotations:
    captions = whole.captions
    return Annotations(
        labels=None if whole.labels is None else whole.labels[indices],
        label_names=whole.label_names,
        captions=None if captions is None else lambda index: captions(int(indices[index])),
    )


def _of_folder(source: FolderSource, caption_column: str | None) -> Annotations:
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
        return " ".join(file.read_text(encoding="utf-8").split()) if file.is_file() else ""

    has_captions = any((source.folder / name).with_suffix(".txt").is_file() for name in names)
    return Annotations(labels, label_names, caption if has_captions else None)
