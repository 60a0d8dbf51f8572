"""Labels and captions in the columns of a table."""

from __future__ import annotations

from typing import Any

import numpy as np

from latentae.data.annotations import Annotations, number_labels
from latentae.data.table import TableSource

_LABEL_COLUMNS = ("label", "labels", "cls", "class", "class_label", "fine_label")
_CAPTION_COLUMNS = ("caption", "text", "prompt", "captions", "txt", "description")


def table_annotations(
    source: TableSource, label_column: str | None = None, caption_column: str | None = None
) -> Annotations:
    """What a table's columns say about its images.

    Args:
        source: the images of one column of the table.
        label_column: None: the one of type ClassLabel (if several: the one of a usual name), else one of
            whole numbers or text called label, labels, cls, class, class_label or fine_label.
        caption_column: None: one of text called caption, text, prompt, captions, txt or description. Of a
            list of captions the first is taken.

    Raises ValueError if there is no such column, or it holds something else.
    """
    features = source.table.features
    label = _find(source, "label_column", label_column, lambda f: _choose_label(f))
    caption = _find(source, "caption_column", caption_column, lambda f: _choose_caption(f))
    labels, names = None, None
    if label is not None:
        values = list(source.table.with_format(None).select_columns([label])[:][label])
        names = getattr(features[label], "names", None)
        # A split whose labels are kept secret has -1 for each.
        if names is None or label_column is not None or any(value != -1 for value in values):
            labels, words = number_labels(values, source.name)
            names = words if names is None else list(names)
        else:
            names = None
    return Annotations(labels, names, None if caption is None else _Captions(source.table, caption))


class _Captions:
    """Reads one cell at a time."""

    def __init__(self, table: Any, column: str) -> None:
        self._table = table.with_format(None).select_columns([column])
        self._column = column

    def __call__(self, index: int) -> str:
        cell = self._table[index][self._column]
        if isinstance(cell, list | tuple | np.ndarray):
            cell = cell[0] if len(cell) else None
        return "" if cell is None else " ".join(str(cell).split())


def _find(source: TableSource, what: str, given: str | None, choose: Any) -> str | None:
    features = source.table.features
    if given is None:
        chosen: str | None = choose({n: f for n, f in features.items() if n != source.image_column})
        return chosen
    if given not in features:
        raise ValueError(f"{what} {given!r} is not there; columns: {', '.join(features)}")
    return given


def _choose_label(features: dict[str, Any]) -> str | None:
    import datasets

    classes = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    if len(classes) == 1:
        return classes[0]
    plain = [name for name, kind in features.items() if _is_text(kind) or _is_whole(kind)]
    return next((name for name in _LABEL_COLUMNS if name in (classes or plain)), None)


def _choose_caption(features: dict[str, Any]) -> str | None:
    texts = [name for name, kind in features.items() if _is_text(kind) or _is_text(_element(kind))]
    return next((name for name in _CAPTION_COLUMNS if name in texts), None)


def _element(kind: Any) -> Any:
    return kind[0] if isinstance(kind, list) else getattr(kind, "feature", None)


def _is_text(kind: Any) -> bool:
    return getattr(kind, "dtype", None) in ("string", "large_string", "string_view")


def _is_whole(kind: Any) -> bool:
    return str(getattr(kind, "dtype", "")).startswith(("int", "uint"))
