"""Images in the cells of a table: which column they are in, and how a cell becomes pixels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from latentae.data.arrays import to_pixels
from latentae.data.decode import BrokenImageError, decode_image
from latentae.data.image_source import Pixels
from latentae.data.levels import ValueRange

_COLUMN_NAMES = ("image", "img", "jpg", "png")


def choose_image_column(features: Mapping[str, Any], image_column: str | None = None) -> str:
    """The column with the images: the one asked for, or else found by the types and names of all.

    Args:
        features: column -> its type in `datasets`.
        image_column: the column; None: the one of type Image (if several: the one of a usual name),
            else one named image, img, jpg or png, else the one of type Array2D or Array3D.

    Raises ValueError listing the columns if there is none.
    """
    import datasets

    columns = list(features)
    if image_column is not None:
        if image_column not in columns:
            raise ValueError(f"image_column {image_column!r} is not there; columns: {', '.join(columns)}")
        return image_column
    images, arrays = (
        [name for name in columns if isinstance(features[name], kinds)]
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


def image_table(table: Any, column: str, feature: Any) -> tuple[Any, str | None]:
    """A `datasets` table cut to its image column, undecoded, and the dtype where that holds arrays.

    Undecoded, so that one decoder with one set of rules serves every source. The table may be one that is
    streamed. Raises ValueError if the column cannot hold images.
    """
    import datasets

    if isinstance(feature, (datasets.Array2D, datasets.Array3D)):
        return table.select_columns([column]).with_format("numpy"), feature.dtype
    if isinstance(feature, datasets.Value) and feature.dtype not in (
        "binary", "large_binary", "binary_view", "string", "large_string", "string_view",
    ):  # fmt: skip
        raise ValueError(f"image_column {column!r} holds {feature}, no images")
    try:
        undecoded = table.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    except (TypeError, ValueError, NotImplementedError) as error:  # pyarrow's derive from these
        raise ValueError(f"image_column {column!r} holds {feature}, no images") from error
    return undecoded, None


def decode_cell(
    cell: Any,
    name: str,
    array_dtype: str | None,
    value_range: ValueRange | None,
    channels: int,
    minimum_side: int | None,
) -> Pixels:
    """The pixels of one cell of an `image_table`; BrokenImageError where it holds no image."""
    if array_dtype is None:
        if cell is None or (cell["bytes"] is None and cell["path"] is None):
            raise BrokenImageError(f"{name}: the row has no image")
        data = Path(cell["path"]) if cell["bytes"] is None else cell["bytes"]
        return decode_image(data, channels, minimum_side=minimum_side, name=name, value_range=value_range)
    # `datasets` shows a row without an array as NaN, and whole numbers as int64.
    if cell is None or (cell.dtype.kind == "f" and np.isnan(cell).all()):
        raise BrokenImageError(f"{name}: the row has no image")
    try:
        return to_pixels(cell.astype(array_dtype), channels, value_range)
    except ValueError as error:
        raise BrokenImageError(f"{name}: {error}") from error
