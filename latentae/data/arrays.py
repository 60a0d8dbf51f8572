"""Images stored as arrays of numbers, with any number of channels: `.npy` files, array columns of tables."""

from __future__ import annotations

import io
import math
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from latentae.data.levels import ValueRange, check_dtype, to_fractions

ARRAY_SUFFIXES = (".npy",)
ARRAY_MAGIC = b"\x93NUMPY"

_HEADERS = {  # of the format's versions; the third is for records, which are no images
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# A smaller file is read whole: each mapped one keeps a file open for as long as a cache holds it.
_MAPPED_BYTES = 64 * 2**20


def read_array(data: bytes | Path, value_range: ValueRange | None = None) -> NDArray[Any]:
    """The array in the bytes or at the path of a `.npy` file; larger files are mapped, read-only.

    Nothing in a file is ever unpickled. Raises ValueError where it is no `.npy` file, holds something else
    than an image can be made of (see `to_pixels`), or is shorter than its header says.
    """
    with io.BytesIO(data) if isinstance(data, bytes) else data.open("rb") as stream:
        shape, dtype = _read_header(stream)
        check_dtype(dtype, value_range)
        needed = math.prod(shape) * dtype.itemsize
        begin = stream.tell()
        stored = stream.seek(0, os.SEEK_END) - begin
        if stored < needed:  # known before a damaged header can ask for all the memory there is
            raise ValueError(
                f"an array {list(shape)} of {dtype.name} takes {needed} bytes, but only {stored} follow: "
                "it is truncated"
            )
        stream.seek(0)
        if isinstance(data, Path) and needed >= _MAPPED_BYTES:
            return np.load(data, mmap_mode="r", allow_pickle=False)
        return np.load(stream, allow_pickle=False)


def _read_header(stream: BinaryIO) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype; the stream is then at the first pixel."""
    version = np.lib.format.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"a .npy file of version {version}: store a plain array of numbers")
    try:
        shape, _, dtype = _HEADERS[version](stream)
    except Exception as error:  # numpy parses the header as Python, and lets all of its errors through
        raise ValueError(f"its .npy header is damaged ({type(error).__name__}: {error})") from error
    if min(shape, default=0) < 0:
        raise ValueError(f"its .npy header is damaged: it says {list(shape)}")
    return shape, dtype


def to_pixels(
    array: NDArray[Any], channels: int, value_range: ValueRange | None = None
) -> NDArray[np.uint8] | NDArray[np.float32]:
    """An image stored as an array, as [H, W, channels].

    Args:
        array: [H, W, C] or [C, H, W], told apart by which end has the length `channels`; for one channel
            also [H, W]. uint8 in [0, 255], uint16 in [0, 65535], or float16, float32 or float64 in [0, 1];
            with `value_range` floats of any range, uint32 and signed integers too.
        channels: what the array must have; none is added or left out.
        value_range: the numbers that stand for black and white: see `to_fractions`.

    Returns:
        uint8 as it is, perhaps sharing the array's memory; the others as float32 in [0, 1]. uint8 of four
        channels is float32 too, since four channels of uint8 mean RGBA to `RandomCrop` and `CenterCrop`,
        which would weight the first three bands by the fourth.

    Raises:
        ValueError: another dtype, shape or range of values, or both ends have the length `channels`.
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
            f"an array {shape} is [H, W, C] as well as [C, H, W] with {channels} channels: crop or pad the "
            f"picture so that only the axis of its channels has the length {channels}"
        )
    if not (first or last):
        also = "[H, W], " if channels == 1 else ""
        raise ValueError(
            f"an array {shape} is no image of {channels} channel(s): store {also}[H, W, {channels}] or "
            f"[{channels}, H, W], or ask for as many channels as it has"
        )
    return array if last else np.moveaxis(array, 0, 2)
