"""Finds the image column of a table and turns its cells into pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from latentae.data.arrays import ValueRange, to_pixels
from latentae.data.decode import PICTURE_CHANNELS, BrokenImageError, Pixels, decode_image

_COLUMN_NAMES = ("image", "img", "jpg", "png")


def choose_image_column(features: Mapping[str, Any], image_column: str | None = None) -> str:
    """Returns the column with the images, found by the types and names of all columns unless it is given.

    Args:
        features: column -> its type in `datasets`.
        image_column: the column; None: the one of type Image (if there are several, the one with a usual
            name), else one named image, img, jpg or png, else the one of type Array2D or Array3D.

    Raises ValueError, with the names of the columns, if there is no such column.
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


@dataclass(frozen=True)
class StoredNumbers:
    """Describes cells that hold pixel values and not files.

    Attributes:
        dtype: of the values.
        is_list: the cells are nested lists, whose shape the type does not state, and not arrays.
    """

    dtype: str
    is_list: bool = False


def image_table(table: Any, column: str, feature: Any) -> tuple[Any, StoredNumbers | None]:
    """Returns a `datasets` table of the image column only, not decoded, and the kind of its numbers, if any.

    It is not decoded by `datasets`, since every source uses our own decoder with its rules. The table may be
    a streamed one. Raises ValueError if the column cannot hold images.
    """
    import datasets

    numbers = _stored_numbers(feature)
    if numbers is not None:
        return table.select_columns([column]).with_format("numpy"), numbers
    depth = _depth_of_lists(feature)
    is_struct = isinstance(feature, dict) and not {"bytes", "path"} & feature.keys()
    if is_struct or depth or (
        isinstance(feature, datasets.Value)
        and feature.dtype not in (
            "binary", "large_binary", "binary_view", "string", "large_string", "string_view",
        )
    ):  # fmt: skip
        hint = " (lists that do not state height and width: store nested lists [H][W] or [H][W][C])"
        raise ValueError(f"image_column {column!r} holds {feature}, no images{hint if depth == 1 else ''}")
    try:
        undecoded = table.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    except (TypeError, ValueError, NotImplementedError) as error:  # pyarrow's derive from these
        raise ValueError(f"image_column {column!r} holds {feature}, no images") from error
    return undecoded, None


def _stored_numbers(feature: Any) -> StoredNumbers | None:
    import datasets

    if isinstance(feature, (datasets.Array2D, datasets.Array3D)):
        return StoredNumbers(feature.dtype)
    leaf = _leaf(feature)
    is_number = isinstance(leaf, datasets.Value) and leaf.dtype.startswith(("int", "uint", "float"))
    return (
        StoredNumbers(leaf.dtype, is_list=True) if is_number and _depth_of_lists(feature) in (2, 3) else None
    )


def _inner(feature: Any) -> Any:
    """Returns the type of a list's elements; None for other types."""
    if isinstance(feature, list):  # how older versions of `datasets` write a list
        return feature[0]
    is_list = type(feature).__name__ in ("List", "LargeList", "Sequence")
    return feature.feature if is_list else None


def _leaf(feature: Any) -> Any:
    inner = _inner(feature)
    return feature if inner is None else _leaf(inner)


def _depth_of_lists(feature: Any) -> int:
    inner = _inner(feature)
    return 0 if inner is None else 1 + _depth_of_lists(inner)


def decode_cell(
    cell: Any,
    name: str,
    numbers: StoredNumbers | None,
    value_range: ValueRange | None,
    max_pixels: int | None,
    channels: int,
    minimum_side: int | None,
) -> Pixels:
    """Decodes one cell of an `image_table`; raises BrokenImageError if it holds no image.

    Nested lists [H][W], [H][W][C] or [C][H][W] of integers are pictures of 8 bits and are converted to the
    wanted channels like files. Lists of uint16 or floats, and all with a `value_range`, are read by
    `to_pixels`; but uint16 from 0 to 255, which look like 8 bits, need a `value_range`.
    """
    if numbers is None:
        if cell is None or (cell["bytes"] is None and cell["path"] is None):
            raise BrokenImageError(f"{name}: the row has no image")
        data = Path(cell["path"]) if cell["bytes"] is None else cell["bytes"]
        return decode_image(
            data, channels, minimum_side, name=name, value_range=value_range, max_pixels=max_pixels
        )
    # `datasets` returns a row without an array as NaN, and integers as int64.
    if cell is None or (cell.dtype.kind == "f" and np.isnan(cell).all()):
        raise BrokenImageError(f"{name}: the row has no image")
    try:
        if not numbers.is_list:
            return to_pixels(cell.astype(numbers.dtype), channels, value_range)
        array = _check_list(cell, numbers.dtype)
        if not _is_eight_bit(array, value_range):
            return to_pixels(array, channels, value_range)
        picture = _to_picture(array.astype(np.uint8), channels)
    except ValueError as error:
        raise BrokenImageError(f"{name}: {error}") from error
    return picture if isinstance(picture, np.ndarray) else decode_image(picture, channels, name=name)


def _check_list(cell: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Returns a cell of nested lists in its own dtype; raises ValueError for shapes of no image."""
    if cell.dtype == object or cell.size == 0:
        raise ValueError("its lists are empty or differ in length: an image is [H][W] or [H][W][C]")
    if cell.dtype.kind == "f" and not dtype.startswith("float"):
        raise ValueError("some of its pixels are missing (null)")
    return cell.astype(dtype)


def _is_eight_bit(array: NDArray[Any], value_range: ValueRange | None) -> bool:
    """Whether integers are pixels of 8 bits; raises ValueError if that cannot be known."""
    if array.dtype == np.uint8:
        return True
    if array.dtype.kind == "f" or value_range is not None:
        return False
    low, high = int(array.min()), int(array.max())
    if array.dtype == np.uint16:
        if high <= 255:
            raise ValueError(
                f"its numbers, uint16, run from {low} to {high}: set value_range=[0, 255] if they are of 8 "
                "bits, or [0, 65535] if they are of 16"
            )
        return False
    if low < 0 or high > 255:
        raise ValueError(
            f"its numbers, {array.dtype.name}, run from {low} to {high}, not 0 to 255: set value_range to "
            "the numbers of black and white"
        )
    return True


def _to_picture(array: NDArray[np.uint8], channels: int) -> Image.Image | Pixels:
    """Returns a PIL image of 1, 3 or 4 channels, which can be converted to others, or else pixels."""
    if channels not in PICTURE_CHANNELS:
        return to_pixels(array, channels)
    if array.ndim == 2:
        return Image.fromarray(array)
    first, last = (array.shape[end] in PICTURE_CHANNELS for end in (0, -1))
    if first == last:  # neither or both may be the channels: only the wanted number can decide
        return to_pixels(array, channels)
    pixels = array if last else np.moveaxis(array, 0, 2)
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
