import numpy as np
import pytest

from latentae.data.levels import check_dtype, check_value_range, to_fractions


def test_known_ranges():
    assert to_fractions(np.array([0, 51, 255], np.uint8), None).tolist() == pytest.approx([0, 0.2, 1])
    assert to_fractions(np.array([0, 13107, 65535], np.uint16), None).tolist() == pytest.approx([0, 0.2, 1])
    assert to_fractions(np.array([0, 0.2, 1]), None).tolist() == pytest.approx([0, 0.2, 1])
    for dtype in ("uint8", "uint16", "float16", "float64", ">u2"):
        fractions = to_fractions(np.zeros(3, dtype), None)
        assert fractions.dtype == np.dtype(np.float32)


def test_a_range_that_is_given():
    for dtype in ("int16", "int32", "int64", "float32", "float64", ">i2"):
        values = np.array([-2000, -1000, 500, 1000, 4000], dtype)
        assert to_fractions(values, (-1000, 1000)).tolist() == pytest.approx([0, 0, 0.75, 1, 1])
    # 32 bits are not rounded to the 24 of a float32 before the range is taken off.
    high = np.array([2**31 - 5, 2**31 - 4, 2**31 - 1], np.uint32)
    assert to_fractions(high, (2**31 - 5, 2**31 - 1)).tolist() == [0, 0.25, 1]
    assert to_fractions(np.array([100], np.uint8), (0, 50))[0] == pytest.approx(100 / 255)


def test_the_values_given_are_left_alone():
    values = np.array([5.0, 10.0], np.float32)
    to_fractions(values, (0, 10))
    assert values.tolist() == [5, 10]


def test_gaps_are_refused_even_with_a_range():
    for gap, what in ((np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")):
        for value_range in (None, (0, 100)):
            with pytest.raises(ValueError, match=f"it holds {what}"):
                to_fractions(np.array([0.5, gap]), value_range)
    large = np.full(4, 60000, np.float16)  # whose sum is too large for a float16
    assert to_fractions(large, (0, 60000)).tolist() == [1] * 4


def test_floats_outside_of_their_range():
    assert to_fractions(np.array([-0.0009, 1.0009]), None).tolist() == [0, 1]
    for values in ([-0.01, 0.5], [0.5, 255.0]):
        with pytest.raises(ValueError, match=f"run from {values[0]} to {values[1]:.6g}, .*set value_range"):
            to_fractions(np.array(values), None)


def test_dtypes():
    for dtype in ("uint8", ">u2", "float16"):
        check_dtype(np.dtype(dtype), None)
    check_dtype(np.dtype("int16"), (0, 1))
    for dtype, value_range in (("int16", None), ("bool", (0, 1)), ("complex64", (0, 1)), ("object", (0, 1))):
        with pytest.raises(ValueError, match=f"an array of {dtype}: store"):
            check_dtype(np.dtype(dtype), value_range)


def test_ranges_are_checked():
    assert check_value_range(None) is None
    assert check_value_range([0, 4095]) == (0.0, 4095.0)
    for wrong in ((1, 1), (2, 1), (0, float("inf")), (0,), (float("nan"), 1)):
        with pytest.raises(ValueError, match="value_range="):
            check_value_range(wrong)
