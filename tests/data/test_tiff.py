import io

import numpy as np
import pytest
import tifffile
from PIL import Image

from latentae.data import BrokenImageError, decode_image
from tests.data.tiffs import pack_bits, tiff

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, MASK, CMYK, YCBCR, LAB = 0, 1, 2, 3, 4, 5, 6, 8
INT, FLOAT = 2, 3
UNSPECIFIED, ASSOCIATED, UNASSOCIATED = 0, 1, 2
ORDERS = pytest.mark.parametrize("order", ["<", ">"])


def fractions(data, channels, **options):
    """The decoded image in [0, 1], whether it came as bytes or as floats."""
    decoded = decode_image(data, channels, **options)
    return decoded / 255 if decoded.dtype == np.uint8 else decoded


def numbers(values, kind, order):
    return np.array(values).astype(order + kind).tobytes()


def by_lzw(pixels):
    """LZW of TIFF in its plainest form: codes of 9 bits for single bytes, begun anew before they grow."""
    codes = []
    for index, byte in enumerate(pixels):
        codes += [256, byte] if index % 200 == 0 else [byte]
    return pack_bits([*codes, 257], 9)


def written(array, **options):
    """A TIFF by tifffile, for compression, tiles and planes."""
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, metadata=None, **options)
    return stream.getvalue()


@ORDERS
@pytest.mark.parametrize(("kind", "largest"), [("u1", 255), ("u2", 65535)])
def test_grey_of_either_polarity(kind, largest, order):
    data = numbers([0, largest // 5, largest], kind, order)
    bits = 8 * int(kind[1])
    for photometric, expected in ((BLACK_IS_ZERO, [0, 0.2, 1]), (WHITE_IS_ZERO, [1, 0.8, 0])):
        image = tiff((3, 1), bits, photometric, data, order=order)
        for channels in (1, 3):
            assert np.allclose(fractions(image, channels)[0, :, 0], expected, atol=1e-7)
        assert fractions(image, 4)[0, :, 3].tolist() == [1, 1, 1]


@ORDERS
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits(bits, order):
    largest = 2**bits - 1
    values = [0, largest, 1, largest]
    expected = np.array(values) / largest
    data = pack_bits(values, bits)
    for photometric, wanted in ((BLACK_IS_ZERO, expected), (WHITE_IS_ZERO, 1 - expected)):
        image = tiff((4, 1), bits, photometric, data, order=order)
        assert np.allclose(fractions(image, 1)[0, :, 0], wanted, atol=1e-6)
    red, green, blue = ([257 * (10 * colour + index) for index in range(largest + 1)] for colour in (1, 2, 3))
    image = tiff((4, 1), bits, PALETTE, data, order=order, colour_map=red + green + blue)
    assert decode_image(image, 3)[0].tolist() == [[10 + v, 20 + v, 30 + v] for v in values]


def test_twelve_bits_have_a_range_of_their_own():
    image = tiff((3, 1), 12, BLACK_IS_ZERO, pack_bits([0, 1024, 4095], 12))
    assert np.allclose(decode_image(image, 1)[0, :, 0], [0, 1024 / 4095, 1], atol=1e-7)
    assert decode_image(image, 1, value_range=(0, 1024))[0, :, 0].tolist() == [0, 1, 1]


@ORDERS
@pytest.mark.parametrize(("kind", "largest"), [("u1", 255), ("u2", 65535)])
def test_planes_of_colours(kind, largest, order):
    red, green, blue = [0, 51, 255], [255, 102, 0], [0, 153, 255]
    planes = numbers([red, green, blue], kind, order)
    if largest == 65535:
        planes = numbers(np.array([red, green, blue]) * 257, kind, order)
    image = tiff((3, 1), 8 * int(kind[1]), RGB, planes, samples=3, planar=2, order=order)
    expected = np.array([red, green, blue]).T / 255
    assert np.allclose(fractions(image, 3)[0], expected, atol=1e-6)
    assert np.allclose(fractions(image, 1)[0, :, 0], expected @ [0.299, 0.587, 0.114], atol=0.003)
    assert np.allclose(fractions(image, 4)[0], np.c_[expected, [1, 1, 1]], atol=1e-6)


@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize("bits", [8, 16])
def test_what_a_fourth_sample_is(bits, planar):
    samples = np.array([[204, 102, 51, 51], [204, 102, 0, 255]])
    scaled = samples * 257 if bits == 16 else samples
    pixels = numbers(scaled if planar == 1 else scaled.T, f"u{bits // 8}", "<")

    def image(kind):
        return tiff((2, 1), bits, RGB, pixels, samples=4, planar=planar, extra_samples=kind)

    stored = samples / 255
    # Not said: a fourth channel as it is, and no part of the colours. Not RGBA, which uint8 would mean.
    assert np.allclose(decode_image(image(UNSPECIFIED), 4)[0], stored, atol=1e-6)
    assert decode_image(image(UNSPECIFIED), 4).dtype == np.float32
    assert np.allclose(fractions(image(UNSPECIFIED), 3)[0], stored[:, :3], atol=1e-6)
    # Alpha of 0.2 and 1: 0.2 · 0.8 + 0.8 = 0.96, 0.2 · 0.4 + 0.8 = 0.88, 0.2 · 0.2 + 0.8 = 0.84.
    assert np.allclose(fractions(image(UNASSOCIATED), 4)[0], stored, atol=1e-6)
    assert np.allclose(fractions(image(UNASSOCIATED), 3)[0], [[0.96, 0.88, 0.84], [0.8, 0.4, 0]], atol=0.003)
    # Colours multiplied by alpha: 0.2 / 0.2 = 1 in the third; over white 0.2 + 0.8.
    assert np.allclose(fractions(image(ASSOCIATED), 4)[0, 0, 2:], [1, 0.2], atol=0.003)
    assert np.allclose(fractions(image(ASSOCIATED), 3)[0, :, 2], [1, 0], atol=0.004)


def test_grey_with_another_sample():
    pixels = bytes([51, 51, 102, 255])
    alpha = tiff((2, 1), 8, BLACK_IS_ZERO, pixels, samples=2, extra_samples=UNASSOCIATED)
    assert np.allclose(fractions(alpha, 1)[0, :, 0], [0.84, 0.4], atol=0.003)
    multiplied = tiff((2, 1), 8, BLACK_IS_ZERO, pixels, samples=2, extra_samples=ASSOCIATED)
    assert np.allclose(fractions(multiplied, 3)[0], [[1] * 3, [0.4] * 3], atol=0.004)
    other = tiff((2, 1), 8, BLACK_IS_ZERO, pixels, samples=2, extra_samples=UNSPECIFIED)
    assert decode_image(other, 1)[0, :, 0].tolist() == [51, 102]
    assert decode_image(other, 2)[0].tolist() == [[51, 51], [102, 255]]


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize(("kind", "largest"), [("u1", 255), ("u2", 65535)])
def test_bands_in_one_page(planar, kind, largest):
    bands = np.random.default_rng(0).integers(0, largest, (4, 5, 13)).astype(kind)
    stored = bands if planar == "contig" else np.ascontiguousarray(np.moveaxis(bands, 2, 0))
    image = written(stored, photometric="minisblack", planarconfig=planar)
    assert np.allclose(fractions(image, 13), bands / largest, atol=1e-6)
    for channels in (1, 3, 12):
        with pytest.raises(BrokenImageError, match=rf"a: .*13 sample\(s\).*not of {channels} channels"):
            decode_image(image, channels, name="a")


@ORDERS
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_signed_integers_and_floats(order, compression):
    options = {"photometric": "minisblack", "byteorder": order, "compression": compression}
    for kind in ("i1", "i2", "i4", "i8"):
        image = written(np.array([[-100, 0, 100]], kind), **options)
        assert fractions(image, 1, value_range=(-100, 100))[0, :, 0].tolist() == [0, 0.5, 1]
        with pytest.raises(BrokenImageError, match="value_range"):
            decode_image(image, 1)
    for kind in ("f2", "f4", "f8"):
        values = np.array([[0, 0.25, 1]], kind)
        assert fractions(written(values, **options), 3)[0, :, 1].tolist() == [0, 0.25, 1]
        inverted = written(values, **(options | {"photometric": "miniswhite"}))
        assert fractions(inverted, 1)[0, :, 0].tolist() == [1, 0.75, 0]
        colours = np.repeat(values[..., None], 3, axis=2)
        assert (
            fractions(written(colours, **(options | {"photometric": "rgb"})), 3)[0, 1].tolist() == [0.25] * 3
        )
    wide = written(np.array([[0, 2**31, 2**32 - 1]], "u4"), **options)
    assert np.allclose(fractions(wide, 1, value_range=(0, 2**32))[0, :, 0], [0, 0.5, 1])


def test_a_value_range_applies_to_colours():
    colours = np.array([[[0, 1024, 4095]]], "u2")
    found = decode_image(written(colours, photometric="rgb"), 3, value_range=(0, 4096))
    assert found[0, 0].tolist() == [0, 0.25, 4095 / 4096]


def test_cmyk_ycbcr_and_lab():
    ink = tiff((2, 1), 8, CMYK, bytes([0, 255, 255, 0, 0, 0, 0, 51]), samples=4)
    assert decode_image(ink, 3)[0].tolist() == [[255, 0, 0], [204, 204, 204]]
    luma = tiff(
        (3, 1), 8, YCBCR, bytes([76, 85, 255, 150, 44, 21, 128, 128, 128]), samples=3, subsampling=[1, 1]
    )
    assert np.abs(decode_image(luma, 3)[0] - np.array([[254, 0, 0], [0, 255, 1], [128] * 3])).max() <= 2
    # L of 0 to 100 in 0 to 255, a and b with a sign; sRGB's red is (54.3, 80.8, 69.9) under D50.
    lab = tiff((3, 1), 8, LAB, bytes([255, 0, 0, 138, 81, 70, 137, 0, 0]), samples=3)
    colours = np.array([[255, 255, 255], [255, 0, 0], [128, 128, 128]])
    assert np.abs(decode_image(lab, 3)[0].astype(int) - colours).max() <= 6
    assert np.abs(decode_image(lab, 1)[0, :, 0].astype(int) - [255, 76, 128]).max() <= 3
    assert decode_image(lab, 4)[0, :, 3].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    ("image", "what"),
    [
        (tiff((8, 1), 1, MASK, b"\xaa"), "transparency mask"),
        (tiff((4, 1), 10, BLACK_IS_ZERO, bytes(5)), "10 bits.*imagecodecs"),
        (tiff((2, 1), 64, BLACK_IS_ZERO, bytes(16), sample_format=6), "complex"),
        (tiff((2, 1), 8, CMYK, bytes(8), samples=4, ink_set=2), "InkSet"),
        (tiff((2, 1), 8, 32803, bytes(2)), "colour filter array"),
        (tiff((1, 1), 8, 9, bytes(3), samples=3), "ICCLab"),
        (tiff((1, 1), 16, LAB, bytes(6), samples=3), "CIELab.*16 bits"),
        (tiff((1, 1), 16, PALETTE, bytes(2), colour_map=[0] * 3), "palette.*16 bits"),
        (tiff((2, 2), 8, YCBCR, bytes(12), samples=3, subsampling=[2, 2]), r"subsampling \[2, 2\]"),
        (
            tiff((1, 1), 16, YCBCR, bytes(6), samples=3, subsampling=[1, 1]),
            "YCbCr.*16 bits, which is not read",
        ),
        (tiff((1, 1), 8, YCBCR, bytes(3), samples=3, reference=[15, 1, 235, 1] * 3), "ReferenceBlackWhite"),
        (tiff((4, 1), 16, WHITE_IS_ZERO, bytes(3)), "read 8 bytes, got 3"),
    ],
)
def test_what_is_not_undone_is_refused_by_name(image, what):
    for channels in (1, 3, 4):
        with pytest.raises(BrokenImageError, match=rf"^a: .*{what}"):
            decode_image(image, channels, name="a")


@pytest.mark.parametrize("options", [{"tile": (32, 32)}, {"compression": "zlib"}, {"rowsperstrip": 7}])
def test_tiles_strips_and_truncation(options, tmp_path):
    planes = np.random.default_rng(0).integers(0, 65536, (3, 40, 50)).astype("u2")
    data = written(planes, photometric="rgb", planarconfig="separate", **options)
    path = tmp_path / "a"
    path.write_bytes(data)
    for each in (data, path):
        assert np.allclose(decode_image(each, 3), np.moveaxis(planes, 0, 2) / 65535, atol=1e-6)
    for cut in (10, 3000):
        with pytest.raises(BrokenImageError):
            decode_image(data[:-cut], 3)
    with pytest.raises(BrokenImageError, match="50 by 40 are 2000 pixels"):
        decode_image(data, 3, max_pixels=1999)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_by_both_readers(orientation):
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    by_pillow = tiff((4, 3), 8, BLACK_IS_ZERO, grey.tobytes(), orientation=orientation)
    by_tifffile = tiff(
        (4, 3), 64, BLACK_IS_ZERO, (grey / 255).tobytes(), sample_format=FLOAT, orientation=orientation
    )
    assert np.allclose(decode_image(by_tifffile, 1), decode_image(by_pillow, 1) / 255, atol=1e-6)


def test_compressed_files_that_tifffile_cannot_unpack_stay_pillows():
    stream = io.BytesIO()
    deep = np.array([[0, 257, 65535]], np.uint16)
    Image.fromarray(deep).save(stream, "TIFF", compression="tiff_lzw")
    assert np.allclose(decode_image(stream.getvalue(), 1)[0, :, 0], [0, 1 / 255, 1])


def test_pages_of_smaller_versions_are_no_bands():
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as file:
        for value in (10, 20):
            file.write(np.full((4, 4), value, np.uint8), photometric="minisblack", metadata=None)
        file.write(np.full((2, 2), 9, np.uint8), photometric="minisblack", subfiletype=1, metadata=None)
    assert decode_image(stream.getvalue(), 2)[0, 0].tolist() == [10, 20]


DEEP = np.random.default_rng(0).integers(0, 4096, (6, 7, 4)).astype("u2")  # 16 levels of 8 bits


@ORDERS
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"compression": "zlib", "predictor": True}])
def test_colours_of_sixteen_bits_keep_them(options, planar, order):
    colours = DEEP[..., :3]
    stored = colours if planar == "contig" else np.ascontiguousarray(np.moveaxis(colours, 2, 0))
    image = written(stored, photometric="rgb", planarconfig=planar, byteorder=order, **options)
    for channels in (3, 4):
        decoded = decode_image(image, channels)
        assert decoded.dtype == np.float32
        assert np.allclose(decoded[..., :3], colours / 65535, rtol=1e-6)
    assert (decoded[..., 3] == 1).all()
    assert np.allclose(decode_image(image, 1)[..., 0], colours @ [0.299, 0.587, 0.114] / 65535, atol=1e-7)
    with pytest.raises(BrokenImageError, match="7 by 6 are 42 pixels"):
        decode_image(image, 3, max_pixels=41)


@pytest.mark.parametrize("kind", ["i2", "i4", "u4", "f2", "f4", "f8"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_colours_of_other_kinds_are_fractions_of_16_bits_or_stay_floats(kind, planar):
    colours = DEEP[..., :3] if kind[0] in "iu" else DEEP[..., :3] / 4096
    stored = colours.astype(kind)
    expected = stored / 65535 if kind[0] in "iu" else stored.astype("f4")
    if planar == "separate":
        stored = np.ascontiguousarray(np.moveaxis(stored, 2, 0))
    image = written(stored, photometric="rgb", planarconfig=planar, compression="zlib")
    assert np.allclose(decode_image(image, 3), expected, rtol=1e-6)


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_transparent_colours_of_sixteen_bits_over_white_keep_them(planar):
    alpha = DEEP[..., 3:] * 16 / 65535
    expected = DEEP[..., :3] / 65535 * alpha + 1 - alpha
    stored = np.concatenate([DEEP[..., :3], DEEP[..., 3:] * 16], axis=2)
    if planar == "separate":
        stored = np.ascontiguousarray(np.moveaxis(stored, 2, 0))
    image = written(stored, photometric="rgb", planarconfig=planar, extrasamples=["unassalpha"])
    found = decode_image(image, 3)
    assert found.dtype == np.float32
    assert np.allclose(found, expected, atol=1e-6)
    # Four channels of uint8 mean RGBA: floats would be four bands to a resize.
    kept = decode_image(image, 4)
    assert kept.dtype == np.uint8
    assert np.allclose(kept / 255, np.concatenate([DEEP[..., :3] / 65535, alpha], axis=2), atol=0.002)


@pytest.mark.parametrize("kind", ["i2", "u4"])
def test_a_value_range_is_not_that_of_alpha(kind):
    largest = np.iinfo(kind).max
    stored = np.array([[[0, 500, 1000, largest], [0, 500, 1000, largest // 5]]], kind)
    image = written(stored, photometric="rgb", extrasamples=["unassalpha"])
    expected = [[0, 0.5, 1], [0.8, 0.9, 1]]
    assert np.allclose(decode_image(image, 3, value_range=(0, 1000))[0], expected, atol=1e-4)


@ORDERS
@pytest.mark.parametrize("orientation", [1, 6])
def test_compressed_colours_that_tifffile_cannot_unpack_keep_sixteen_bits(orientation, order, tmp_path):
    def image(samples, **tags):
        pixels = by_lzw(numbers(samples, "u2", order))
        options = tags | {"compression": 5, "orientation": orientation}
        return tiff((7, 6), 16, RGB, pixels, samples=samples.shape[2], order=order, **options)

    def turned(picture):
        return picture if orientation == 1 else np.rot90(picture, -1)

    colours = DEEP[..., :3]
    path = tmp_path / "a.tif"
    path.write_bytes(image(colours))
    for data in (path, path.read_bytes()):
        assert np.allclose(decode_image(data, 3), turned(colours / 65535), rtol=1e-6)
        found = decode_image(data, 3, value_range=(0, 4096))
        assert np.allclose(found, turned(colours / 4096), rtol=1e-6)
    four = image(DEEP, extra_samples=UNSPECIFIED)
    assert np.allclose(decode_image(four, 4), turned(DEEP / 65535), rtol=1e-6)
    assert np.allclose(decode_image(four, 3), turned(colours / 65535), rtol=1e-6)
    alpha = np.full_like(DEEP[..., :1], 13107)  # 0.2
    for kind, factor in ((UNASSOCIATED, 0.2), (ASSOCIATED, 1)):
        transparent = image(np.concatenate([colours, alpha], axis=2), extra_samples=kind)
        assert np.allclose(decode_image(transparent, 3), turned(colours / 65535 * factor + 0.8), atol=1e-6)


def test_what_contradicts_the_wanted_channels_is_said_with_the_remedy():
    pixels = np.zeros((2, 3, 4), np.uint16)
    options = {"photometric": "minisblack", "planarconfig": "contig"}
    marked = written(pixels, extrasamples=["unspecified", "unspecified", "unassalpha"], **options)
    for channels in (1, 3, 4):
        what = r"^a: a TIFF of 4 grey samples .* ExtraSamples \[0, 0, 2\] .* alpha.*: for 4 bands .* store 0"
        with pytest.raises(BrokenImageError, match=what):
            decode_image(marked, channels, name="a")
    equal = written(pixels, extrasamples=["unspecified"] * 3, **options)
    assert decode_image(equal, 4).shape == (2, 3, 4)


def paged(images, **options):
    """A TIFF of several pages; each image is an array, or a pair of an array and its NewSubfileType."""
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as file:
        for image in images:
            array, kind = image if isinstance(image, tuple) else (image, 0)
            photometric = "rgb" if array.ndim == 3 else "minisblack"
            choice = {"photometric": photometric, "subfiletype": kind, "metadata": None}
            file.write(array, **(choice | options))
    return stream.getvalue()


@pytest.mark.parametrize("count", [3, 4])
@pytest.mark.parametrize(
    ("kind", "largest"), [("u1", 255), ("u2", 65535), ("f4", 1), ("f8", 1), ("i2", 65535)]
)
def test_grey_pages_are_the_bands_of_three_or_four_channels(kind, largest, count):
    bands = np.random.default_rng(1).integers(0, 200, (count, 5, 6))
    stored = (bands / 200 if kind[0] == "f" else bands).astype(kind)
    expected = np.moveaxis(stored / largest, 0, 2)
    small = (stored[0, ::2, ::2], 1)
    for pages in ([*stored], [*stored, small], [(page, 2) for page in stored]):
        image = paged(pages, compression="zlib")
        assert np.allclose(fractions(image, count), expected, atol=1e-6)
        assert np.allclose(fractions(image, 1), expected[..., :1], atol=1e-6)
        first = fractions(image, 7 - count)  # another number of channels: the first page
        assert np.allclose(first[..., :3], np.repeat(expected[..., :1], 3, axis=2), atol=1e-6)
    # Not uint8, which would mean RGBA.
    assert decode_image(image, count).dtype == (np.uint8 if (kind, count) == ("u1", 3) else np.float32)


def test_a_value_range_and_a_polarity_apply_to_the_bands():
    bands = np.arange(48, dtype=np.uint16).reshape(4, 3, 4) * 20
    assert np.allclose(
        decode_image(paged(bands), 4, value_range=(0, 1000)), np.moveaxis(bands, 0, 2) / 1000, atol=1e-6
    )
    inverted = decode_image(paged(bands, photometric="miniswhite"), 4)
    assert np.allclose(inverted, 1 - np.moveaxis(bands, 0, 2) / 65535, atol=1e-6)


GREY, COLOUR = np.full((4, 4), 51, np.uint8), np.full((4, 4, 3), (51, 102, 153), np.uint8)


@pytest.mark.parametrize(
    "pages",
    [
        [COLOUR, COLOUR, COLOUR],  # a scan
        [GREY, GREY[:3], GREY],  # another size
        [GREY, (GREY[::2, ::2], 1), (GREY[::4, ::4], 1)],  # overviews
        [GREY, (GREY, 1), (GREY > 0, 4)],  # an overview of the same size, a mask
        [GREY, GREY.astype("u2"), GREY],  # other bits
        [GREY, COLOUR, GREY],
        [GREY] * 5,
    ],
)
def test_pages_that_are_no_bands_are_left_out(pages):
    first = pages[0] if pages[0].ndim == 3 else np.repeat(GREY[..., None], 3, axis=2)
    for filled in (pages, [*pages, (GREY, 1)]):
        image = paged(filled)
        assert np.array_equal(decode_image(image, 3), first)
        assert np.array_equal(decode_image(image, 4), np.dstack([first, np.full((4, 4), 255, np.uint8)]))


def test_pages_of_one_bit_are_a_scan():
    stream = io.BytesIO()
    white, black = Image.new("1", (9, 9), 1), Image.new("1", (9, 9), 0)
    white.save(stream, "TIFF", save_all=True, append_images=[black, black])
    assert (decode_image(stream.getvalue(), 3) == 255).all()
