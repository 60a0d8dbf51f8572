"""Stored numbers as fractions of their range: what 8, 16 and 32 bits, integers and floats become."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

ValueRange = tuple[float, float]

STORABLE = ("uint8", "uint16", "float16", "float32", "float64")  # their range is known
_RANGED = ("int8", "int16", "int32", "int64", "uint32")  # only with a value_range
_ROUNDING = 1e-3  # how far from [0, 1] rounding may leave a value; float16 has steps of 5e-4 there


def check_value_range(value_range: Sequence[float] | None) -> ValueRange | None:
    """`value_range` as (low, high); ValueError unless it is None or two finite numbers, low < high."""
    if value_range is None:
        return None
    if len(value_range) != 2 or not -math.inf < value_range[0] < value_range[1] < math.inf:
        raise ValueError(
            f"value_range={value_range} must be null or (low, high) with low < high: the stored numbers that "
            "stand for black and for white"
        )
    return float(value_range[0]), float(value_range[1])


def check_dtype(dtype: np.dtype[Any], value_range: ValueRange | None) -> None:
    """Raise ValueError for numbers that are no pixels, or whose range is not known."""
    if dtype.name in STORABLE or (value_range is not None and dtype.name in _RANGED):  # in either byte order
        return
    remedy = "" if dtype.name not in _RANGED else ", or set value_range to the numbers of black and white"
    raise ValueError(
        f"an array of {dtype.name}: store uint8, uint16, or float16, float32 or float64 in [0, 1]{remedy}"
    )


def to_fractions(values: NDArray[Any], value_range: ValueRange | None) -> NDArray[np.float32]:
    """Numbers of any shape and kind that `check_dtype` lets pass, as float32 in [0, 1].

    Args:
        values: without `value_range`: uint8 is divided by 255 and uint16 by 65535; floats must lie in [0, 1]
            already, and those out of it by no more than 0.001, as rounding leaves them, are clipped.
        value_range: (low, high): v becomes (v − low) / (high − low), clipped to [0, 1]. Does not apply to
            uint8, which is always of 0 to 255.

    Raises:
        ValueError: NaN, or floats outside of [0, 1] without a `value_range`; infinite ones in any case.
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


def deep_to_fractions(values: NDArray[Any], value_range: ValueRange | None) -> NDArray[np.float32]:
    """`to_fractions` for the numbers of a picture, which readers often give in more bits than it has.

    Without a `value_range`, integers of 16 bits with a sign and of 32 bits are taken for numbers of 16
    bits. Raises ValueError where they do not lie in [0, 65535], and for what `check_dtype` refuses.
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
    # The sum is finite where all values are, but for overflow: only then each is looked at.
    with np.errstate(over="ignore", invalid="ignore"):
        total = values.sum(dtype=np.float64)
    if not math.isfinite(total) and not np.isfinite(values).all():
        what = "NaN" if np.isnan(values).any() else "infinity"
        raise ValueError(f"it holds {what}, which is no value of a pixel: fill the gaps before storing")


def _clip_rounding(values: NDArray[Any]) -> NDArray[np.float32]:
    low, high = float(values.min()), float(values.max())
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise ValueError(
            f"its values run from {low:.6g} to {high:.6g}, and floats must lie in [0, 1]: set value_range to "
            "the numbers of black and white, the same for all images, or rescale them before storing"
        )
    pixels = values.astype(np.float32, copy=False)
    return pixels if low >= 0 and high <= 1 else pixels.clip(0, 1)
