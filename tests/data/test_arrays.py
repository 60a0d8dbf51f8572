import io

import numpy as np
import pytest

from latentae.data import CenterCrop, arrays, read_array, to_pixels
from latentae.data.arrays import _KNOWN_RANGE, check_dtype, check_value_range, to_fractions


def npy(array: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def bands(dtype, height: int = 4, width: int = 5, channels: int = 13) -> np.ndarray:
    return np.arange(height * width * channels).reshape(height, width, channels).astype(dtype)


def test_files_come_back(tmp_path):
    for array in (bands(np.uint8), bands(">u2"), np.asfortranarray(bands(np.float64)), bands("<f2")[::2]):
        (tmp_path / "a.npy").write_bytes(npy(array))
        for data in (npy(array), tmp_path / "a.npy"):
            read = read_array(data)
            assert read.dtype == array.dtype
            assert np.array_equal(read, array)


def test_large_files_are_mapped_small_ones_read(tmp_path, monkeypatch):
    path = tmp_path / "a.npy"
    path.write_bytes(npy(bands(np.uint8)))
    small = read_array(path)
    assert not isinstance(small, np.memmap)
    assert small.flags.writeable
    monkeypatch.setattr(arrays, "_MAPPED_BYTES", 4 * 5 * 13)
    mapped = read_array(path)
    assert isinstance(mapped, np.memmap)
    assert np.array_equal(mapped, small)
    pixels = to_pixels(mapped, 13)
    assert np.shares_memory(pixels, mapped)
    assert CenterCrop((2, 3))(pixels).shape == (13, 2, 3)
    assert not isinstance(read_array(path.read_bytes()), np.memmap)


def test_what_is_no_image_is_refused_before_it_is_read(tmp_path):
    whole = npy(bands(np.uint8))
    huge = whole.replace(b"(4, 5, 13)", b"(4, 5000000, 13)".ljust(16)[:16]).replace(
        b" " * 6 + b"\n", b"\n", 1
    )
    assert len(huge) == len(whole)
    cases = {
        whole[:-1]: r"\[4, 5, 13\] of uint8 takes 260 bytes, but only 259 follow",
        huge: r"takes 260000000 bytes, but only 260 follow",
        npy(np.array([{"a": 1}]), allow_pickle=True): "an array of object: store uint8",
        npy(np.zeros(3, [("r", "u1"), ("g", "u1")])): "an array of void16: store uint8",
        npy(np.zeros((2, 2), np.int16)): "an array of int16: store uint8",
        npy(np.zeros((2, 2), bool)): "an array of bool: store uint8",
        b"\x93NUMPY\x03\x00" + whole[8:]: r"version \(3, 0\)",
        b"\x93NUMPY": "EOF",
        whole[:40]: "header is damaged .*EOF",
        whole.replace(b"(4, 5, 13)", b"(4,-5, 13)"): r"header is damaged: it says \[4, -5, 13\]",
        b"PK\x03\x04 an archive": "magic string is not correct",
    }
    for data, message in cases.items():
        with pytest.raises(ValueError, match=message):
            read_array(data)
        (tmp_path / "a.npy").write_bytes(data)
        with pytest.raises(ValueError, match=message):
            read_array(tmp_path / "a.npy")


def test_random_damage_gives_an_array_or_an_error():
    rng = np.random.default_rng(0)
    whole, refused = npy(bands(np.float32)), 0
    for _ in range(300):
        data = bytearray(whole)
        for place in rng.integers(128, size=3):  # in the header
            data[place] = rng.integers(256)
        try:
            assert read_array(bytes(data)).dtype.name in _KNOWN_RANGE
        except ValueError:
            refused += 1
    assert 150 < refused < 300


def test_dtypes():
    levels = np.array([[[0, 51, 255]]])
    eight = to_pixels(levels.astype(np.uint8), 3)
    assert eight.dtype == np.uint8
    assert np.array_equal(eight, levels)
    sixteen = to_pixels((levels * 257).astype(np.uint16), 3)
    assert sixteen.dtype == np.float32
    assert np.allclose(sixteen, levels / 255, rtol=1e-7)
    assert np.array_equal(to_pixels((levels * 257).astype(">u2"), 3), sixteen)
    for dtype in (np.float16, np.float32, np.float64, ">f4"):
        pixels = to_pixels((levels / 255).astype(dtype), 3)
        assert pixels.dtype == np.dtype(np.float32)  # native, also of the other byte order
        assert np.allclose(pixels, levels / 255, atol=2**-12)
    with pytest.raises(ValueError, match="an array of int64: store uint8, uint16, or float16"):
        to_pixels(levels, 3)


def test_four_channels_are_bands_and_not_rgba():
    # Colours where the fourth band is 0: as RGBA they would be transparent, and lost when resized.
    image = np.zeros((8, 8, 4), np.uint8)
    image[..., 0] = 255
    pixels = to_pixels(image, 4)
    assert pixels.dtype == np.float32
    assert np.array_equal(pixels, image / 255)
    resized = CenterCrop(4)(pixels)
    assert resized[0].min() == 1
    assert resized[1:].max() == -1


def test_layouts():
    image = bands(np.uint8)
    assert np.array_equal(to_pixels(image, 13), image)
    assert np.array_equal(to_pixels(np.moveaxis(image, 2, 0), 13), image)
    flat = image[..., 0]
    for one in (flat, flat[..., np.newaxis], flat[np.newaxis]):
        assert np.array_equal(to_pixels(one, 1), flat[..., np.newaxis])
    square = bands(np.uint8, 13, 13, 3)  # only the picture is as wide as asked for channels
    with pytest.raises(ValueError, match=r"\[13, 13, 3\] is not an image of 14"):
        to_pixels(square, 14)


def test_what_could_be_two_images_is_refused():
    with pytest.raises(ValueError, match=r"\[3, 5, 3\] can be \[H, W, C\] or \[C, H, W\].*crop or pad"):
        to_pixels(np.zeros((3, 5, 3), np.uint8), 3)


@pytest.mark.parametrize(
    ("shape", "channels", "message"),
    [
        ((4, 5, 12), 13, r"store \[H, W, 13\] or \[13, H, W\], or ask"),
        ((4, 5), 3, r"\[4, 5\] is not an image of 3"),
        ((4, 5, 3), 1, r"store \[H, W\], \[H, W, 1\] or \[1, H, W\]"),
        ((4, 13, 5), 13, "not an image of 13"),
        ((1, 4, 5, 13), 13, "not an image of 13"),
        ((), 1, "not an image of 1"),
        ((0, 5, 3), 3, "has no pixels"),
    ],
)
def test_other_shapes_are_refused(shape, channels, message):
    with pytest.raises(ValueError, match=message):
        to_pixels(np.zeros(shape, np.uint8), channels)


def test_numbers_of_any_range_with_a_value_range():
    stored = np.array([[[-1000, 0, 3000, 9000]]], np.int16)
    with pytest.raises(ValueError, match=r"an array of int16: .* or set value_range"):
        to_pixels(stored, 4)
    with pytest.raises(ValueError, match="an array of int16"):
        read_array(npy(stored))
    assert np.array_equal(read_array(npy(stored), (-1000, 3000)), stored)
    assert to_pixels(stored, 4, (-1000, 3000)).tolist() == [[[0, 0.25, 1, 1]]]
    assert (
        to_pixels(stored[..., :3].astype(np.uint8), 3, (0, 10)).dtype == np.uint8
    )  # 8 bits stay what they are


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


def test_dtypes_need_a_known_range():
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
