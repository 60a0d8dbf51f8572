"""Arrays of numbers as pixels: dtypes, shapes, value ranges (black and white), and ``.npy`` files.

Integers and floats of 8 to 64 bits become fractions of their value range, float32 in [0, 1].
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

ARRAY_SUFFIXES = (".npy",)
ARRAY_MAGIC = b"\x93NUMPY"

ValueRange = tuple[float, float]  # the stored numbers that stand for black and for white

_KNOWN_RANGE = ("uint8", "uint16", "float16", "float32", "float64")
_NEEDS_RANGE = ("int8", "int16", "int32", "int64", "uint32")  # these need a value_range
_ROUNDING = 1e-3  # how far outside [0, 1] rounding may leave a value; float16 has steps of 5e-4 there

_HEADERS = {  # by version of the format; version 3 is for records, which are not images
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# Smaller files are read whole: a memory-mapped file stays open as long as a cache holds its array.
_MAPPED_BYTES = 64 * 2**20


def check_value_range(value_range: Sequence[float] | None) -> ValueRange | None:
    """Returns (low, high) or None; raises ValueError unless these are finite numbers with low < high."""
    if value_range is None:
        return None
    if len(value_range) != 2 or not -math.inf < value_range[0] < value_range[1] < math.inf:
        raise ValueError(
            f"value_range={value_range} must be null or (low, high) with low < high: the stored numbers that "
            "stand for black and for white"
        )
    return float(value_range[0]), float(value_range[1])


def check_dtype(dtype: np.dtype[Any], value_range: ValueRange | None) -> None:
    """Raises ValueError if numbers of this dtype cannot be pixels, or if their range is unknown."""
    if dtype.name in _KNOWN_RANGE or (
        value_range is not None and dtype.name in _NEEDS_RANGE
    ):  # in either byte order
        return
    remedy = (
        "" if dtype.name not in _NEEDS_RANGE else ", or set value_range to the numbers of black and white"
    )
    raise ValueError(
        f"an array of {dtype.name}: store uint8, uint16, or float16, float32 or float64 in [0, 1]{remedy}"
    )


def to_fractions(values: NDArray[Any], value_range: ValueRange | None) -> NDArray[np.float32]:
    """Scales numbers to float32 in [0, 1].

    Args:
        values: an array of any shape and of a dtype that ``check_dtype`` accepts. Without ``value_range``,
            uint8 is divided by 255 and uint16 by 65535; floats must lie in [0, 1] already, and are clipped
            if they are outside by at most 0.001, as rounding may leave them.
        value_range: (low, high): v becomes (v − low) / (high − low), clipped to [0, 1]. Does not apply to
            uint8, whose range is always 0 to 255.

    Raises:
        ValueError: NaN or infinity, or floats outside of [0, 1] without a ``value_range``.
    """
    if values.dtype.kind == "f":
        _check_finite(values)
    if values.dtype == np.uint8:
        value_range = (0, 255)
    if value_range is None and values.dtype.kind == "u":
        value_range = (0, int(np.iinfo(values.dtype).max))
    if value_range is None:
        return _clip_rounding(values)
    low, high = value_range
    # float32 holds every integer of 16 bits, but not those of 32.
    is_exact = values.dtype.itemsize <= 2 or values.dtype == np.float32
    fractions: NDArray[Any] = values.astype(np.float32 if is_exact else np.float64)
    np.subtract(fractions, low, out=fractions)
    np.divide(fractions, high - low, out=fractions)
    return fractions.clip(0, 1, out=fractions).astype(np.float32, copy=False)


def to_bytes(fractions: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Rounds numbers in [0, 1] to the 256 levels of 8 bits."""
    return np.rint(fractions * 255).astype(np.uint8)


def unpremultiply(colours: NDArray[np.float32], alpha: NDArray[np.float32]) -> NDArray[np.float32]:
    """Divides colours [H, W, C] that are multiplied by alpha [H, W, 1] by it; all are in [0, 1].

    Pixels of which nothing is visible become black.
    """
    return np.divide(colours, alpha, out=np.zeros_like(colours), where=alpha > 0).clip(0, 1)


def deep_to_fractions(values: NDArray[Any], value_range: ValueRange | None) -> NDArray[np.float32]:
    """Does ``to_fractions`` for decoded pictures, which decoders often return in more bits than stored.

    Without a ``value_range``, int16, int32 and uint32 are taken for numbers of 16 bits. Raises ValueError if
    they do not lie in [0, 65535], and for dtypes that ``check_dtype`` refuses.
    """
    if value_range is None and values.dtype.name in ("int16", "int32", "uint32"):
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 65535:
            raise ValueError(
                f"integers of {values.dtype.name} from {low} to {high}, not 0 to 65535: set value_range to "
                "the numbers of black and white"
            )
        value_range = (0, 65535)
    check_dtype(values.dtype, value_range)
    return to_fractions(values, value_range)


def _check_finite(values: NDArray[Any]) -> None:
    # A finite sum means that all values are finite. Otherwise (it may be an overflow) check each value.
    with np.errstate(over="ignore", invalid="ignore"):
        total = values.sum(dtype=np.float64)
    if not math.isfinite(total) and not np.isfinite(values).all():
        what = "NaN" if np.isnan(values).any() else "infinity"
        raise ValueError(f"it holds {what}, which is not a pixel value: fill the gaps before storing")


def _clip_rounding(values: NDArray[Any]) -> NDArray[np.float32]:
    low, high = float(values.min()), float(values.max())
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise ValueError(
            f"its values run from {low:.6g} to {high:.6g}, and floats must lie in [0, 1]: set value_range to "
            "the numbers of black and white, the same for all images, or rescale them before storing"
        )
    pixels = values.astype(np.float32, copy=False)
    return pixels if low >= 0 and high <= 1 else pixels.clip(0, 1)


def read_array(data: bytes | Path, value_range: ValueRange | None = None) -> NDArray[Any]:
    """Reads the array in the bytes or at the path of a ``.npy`` file; large files are mapped, read-only.

    Nothing is ever unpickled. Raises ValueError if it is not a ``.npy`` file, cannot be an image (see
    ``to_pixels``), or is shorter than its header says.
    """
    with io.BytesIO(data) if isinstance(data, bytes) else data.open("rb") as stream:
        shape, dtype = _read_header(stream)
        check_dtype(dtype, value_range)
        needed = math.prod(shape) * dtype.itemsize
        begin = stream.tell()
        stored = stream.seek(0, os.SEEK_END) - begin
        if stored < needed:  # checked before a damaged header can request all of the memory
            raise ValueError(
                f"an array {list(shape)} of {dtype.name} takes {needed} bytes, but only {stored} follow: "
                "it is truncated"
            )
        stream.seek(0)
        if isinstance(data, Path) and needed >= _MAPPED_BYTES:
            return np.load(data, mmap_mode="r", allow_pickle=False)
        return np.load(stream, allow_pickle=False)


def _read_header(stream: BinaryIO) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Returns shape and dtype, and leaves the stream at the first pixel."""
    version = np.lib.format.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"a .npy file of version {version}: store a plain array of numbers")
    try:
        shape, _, dtype = _HEADERS[version](stream)
    except Exception as error:  # numpy parses the header as Python and passes on all of its errors
        raise ValueError(f"its .npy header is damaged ({type(error).__name__}: {error})") from error
    if min(shape, default=0) < 0:
        raise ValueError(f"its .npy header is damaged: it says {list(shape)}")
    return shape, dtype


def to_pixels(
    array: NDArray[Any], channels: int, value_range: ValueRange | None = None
) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Returns an image that is stored as an array, as [H, W, channels].

    Args:
        array: [H, W, C] or [C, H, W], depending on which end has the length ``channels``; for one channel
            also [H, W]. uint8 in [0, 255], uint16 in [0, 65535], or float16, float32 or float64 in [0, 1];
            with ``value_range`` also floats of any range, uint32 and signed integers.
        channels: the channels that the array must have; none is added or left out.
        value_range: the numbers that stand for black and white: see ``to_fractions``.

    Returns:
        uint8 unchanged, perhaps sharing the array's memory; other dtypes as float32 in [0, 1]. uint8 with
        four channels also becomes float32: to ``RandomCrop`` and ``CenterCrop``, four channels of uint8 mean
        RGBA, and without being told ``alpha`` they would weight the first three bands by the fourth.

    Raises:
        ValueError: another dtype, shape or range of values, or both ends have the length ``channels``.
    """
    check_dtype(array.dtype, value_range)
    picture = _channels_last(array, channels)
    if picture.size == 0:
        raise ValueError(f"an array {list(array.shape)} has no pixels")
    if picture.dtype == np.uint8 and channels != 4:
        return picture
    return to_fractions(picture, value_range)


def _channels_last(array: NDArray[Any], channels: int) -> NDArray[Any]:
    shape = list(array.shape)
    if array.ndim == 2 and channels == 1:
        return array[..., np.newaxis]
    first, last = (array.ndim == 3 and shape[end] == channels for end in (0, -1))
    if first and last:
        raise ValueError(
            f"an array {shape} can be [H, W, C] or [C, H, W] with {channels} channels: crop or pad the "
            f"picture so that only the axis of its channels has the length {channels}"
        )
    if not (first or last):
        also = "[H, W], " if channels == 1 else ""
        raise ValueError(
            f"an array {shape} is not an image of {channels} channel(s): store {also}[H, W, {channels}] or "
            f"[{channels}, H, W], or ask for as many channels as it has"
        )
    return array if last else np.moveaxis(array, 0, 2)
