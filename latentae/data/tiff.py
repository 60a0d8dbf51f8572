"""TIFF: decides which pages Pillow reads as their tags say, and reads the other pages with tifffile."""

from __future__ import annotations

import io
import logging
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from latentae.data.arrays import ValueRange, deep_to_fractions, to_bytes, unpremultiply

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: BigTIFF

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _CMYK, _YCBCR = 0, 1, 2, 5, 6
_COLOURS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _YCBCR: 3}  # photometric interpretation -> samples
_PHOTOMETRIC_NAMES = {
    0: "grey (WhiteIsZero)", 1: "grey (BlackIsZero)", 2: "RGB", 3: "palette", 4: "transparency mask",
    5: "CMYK", 6: "YCbCr", 8: "CIELab", 9: "ICCLab", 10: "ITULab", 32803: "colour filter array",
    32844: "LogL", 32845: "LogLuv", 34892: "linear raw", 51177: "depth map",
}  # fmt: skip
_PILLOW_READS = (0, 1, 2, 3, 5, 6, 8)
_UINT, _INT, _FLOAT = 1, 2, 3
_UNSPECIFIED, _ASSOCIATED, _UNASSOCIATED = 0, 1, 2  # kinds of extra samples; associated: premultiplied
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_UNUSUAL_PAGES = 1 | 4  # NewSubfileType: a smaller version, a transparency mask


@dataclass(frozen=True)
class Layout:
    """The tags of a page that state what its numbers mean.

    Attributes:
        size: (width, height).
        photometric: PhotometricInterpretation.
        is_planar: each sample is stored in a plane of its own.
        samples: numbers per pixel.
        bits, formats: BitsPerSample and SampleFormat, one per sample.
        extras: the kinds of the extra samples, which follow the colours.
        compression: 1: none.
        subsampling, reference: YCbCrSubSampling and ReferenceBlackWhite; None: the tag is missing.
        ink_set: 1: CMYK.
    """

    size: tuple[int, int]
    photometric: int
    is_planar: bool
    samples: int
    bits: tuple[int, ...]
    formats: tuple[int, ...]
    extras: tuple[int, ...]
    compression: int
    subsampling: tuple[int, ...] | None
    reference: tuple[float, ...] | None
    ink_set: int

    @classmethod
    def of(cls, tag: Callable[[int], Any]) -> Layout:
        """Reads the tags with a function from the number of a tag to its value, or None."""

        def numbers(code: int, default: int) -> tuple[int, ...]:
            value = tag(code)
            if value is None:
                return (default,)
            return tuple(int(each) for each in (value if isinstance(value, tuple) else (value,)))

        def number(code: int, default: int) -> int:
            return numbers(code, default)[0]

        samples = number(277, 1)
        bits, formats = (
            values * samples if len(values) == 1 else values[:samples]
            for values in (numbers(258, 1), numbers(339, _UINT))
        )
        return cls(
            size=(number(256, 0), number(257, 0)),
            photometric=number(262, _WHITE_IS_ZERO),
            is_planar=number(284, 1) == 2 and samples > 1,
            samples=samples,
            bits=bits,
            formats=formats,
            extras=() if tag(338) is None else numbers(338, 0),
            compression=number(259, 1),
            subsampling=None if tag(530) is None else numbers(530, 2),
            reference=None if tag(532) is None else tuple(float(value) for value in tag(532)),
            ink_set=number(332, 1),
        )

    def describe(self) -> str:
        """Describes the layout for messages, such as "RGB 640x480 of 3 sample(s) of 16 bits"."""
        bits = "/".join(str(bits) for bits in sorted(set(self.bits)))
        width, height = self.size
        return f"{self.photometric_name} {width}x{height} of {self.samples} sample(s) of {bits} bits"

    @property
    def photometric_name(self) -> str:
        return _PHOTOMETRIC_NAMES.get(self.photometric, f"PhotometricInterpretation {self.photometric}")

    @property
    def is_band(self) -> bool:
        """Whether the page is plain grey, as a band of an image must be."""
        return self.samples == 1 and _COLOURS.get(self.photometric) == 1

    @property
    def kind(self) -> tuple[Any, ...]:
        """What the pages that are the bands of one image have in common."""
        return self.size, self.photometric, self.bits, self.formats

    @property
    def has_alpha(self) -> bool:
        return _ASSOCIATED in self.extras or _UNASSOCIATED in self.extras

    def has_bands(self, channels: int) -> bool:
        """Whether the samples of a pixel are the wanted channels, unchanged and in order."""
        if self.samples != channels or self.photometric not in _COLOURS:
            return False
        return channels not in (1, 3, 4) or (self.samples > _COLOURS[self.photometric] and not self.is_rgba)

    @property
    def is_rgba(self) -> bool:
        # If the tags do not describe the fourth of four samples, Pillow and others take it for alpha.
        return self.has_alpha or (self.photometric == _RGB and self.samples == 4 and not self.extras)

    def default_range(self) -> ValueRange | None:
        """Returns black and white if the bits imply them: for unsigned integers of 9 to 16 bits."""
        if set(self.formats) == {_UINT} and len(set(self.bits)) == 1 and 8 < self.bits[0] <= 16:
            return (0, 2 ** self.bits[0] - 1)
        return None

    def pillow_reads(self, channels: int, value_range: ValueRange | None, is_big_endian: bool) -> bool:
        """Whether Pillow decodes the page as its tags say, with this many channels.

        Pillow drops unspecified extra samples, does not invert WhiteIsZero of more than 8 bits, takes planes
        of 16 bits for stripes and signed bytes for unsigned ones, keeps 8 of 16 bits of colours, and reverses
        the bytes of compressed big-endian numbers with a sign or a fraction. Before release 13 it finds no
        data in uncompressed YCbCr.
        """
        if self.photometric == _YCBCR and self.compression == 1:
            return False
        if self.photometric not in _PILLOW_READS or self.has_bands(channels):
            return False
        if self.is_planar and (self.extras or self.is_rgba):
            return False
        if set(self.formats) != {_UINT}:
            kinds = {(_INT, 16), (_INT, 32), (_FLOAT, 32)}
            is_plain = self.samples == 1 and self.photometric == _BLACK_IS_ZERO
            return (
                is_plain
                and not (is_big_endian and self.compression != 1)
                and (self.formats[0], self.bits[0]) in kinds
            )
        if max(self.bits) <= 8:
            return True
        if _COLOURS.get(self.photometric) == 1:
            return self.samples == 1 and self.photometric == _BLACK_IS_ZERO and self.bits[0] in (12, 16)
        # Of CMYK, which tifffile does not convert, 8 of 16 bits are enough for the full value range alone.
        return self.photometric != _RGB and not self.is_planar and value_range in (None, (0, 65535))

    @property
    def pillow_unpacks_deep_colours(self) -> bool:
        """Whether Pillow undoes the compression of RGB pixels of 16 bits, if not tifffile."""
        is_deep = set(self.bits) == {16} and set(self.formats) == {_UINT} and self.photometric == _RGB
        return is_deep and not self.is_planar and self.samples in (3, 4) and self.compression != 1

    def check(self) -> None:
        """Raises ValueError if the page's numbers have a meaning that neither reader supports."""
        if self.photometric == _CMYK and self.ink_set != 1:
            raise ValueError("a TIFF of other inks than CMYK (InkSet 2): convert it to RGB")
        if self.photometric != _YCBCR or self.compression != 1:
            return
        if self.subsampling not in (None, (1, 1)):
            raise ValueError(
                f"an uncompressed YCbCr TIFF with subsampling {list(self.subsampling or ())}: convert it to "
                "RGB"
            )
        if self.reference not in (None, (0, 255, 128, 255, 128, 255)):
            raise ValueError(
                f"an uncompressed YCbCr TIFF with ReferenceBlackWhite {list(self.reference or ())}: convert "
                "it to RGB"
            )


def band_pages(data: bytes | Path) -> list[tuple[int, Layout]]:
    """Returns number and layout of each page that is not a smaller version or a mask of another."""
    with _open(data) as file:
        return [
            (number, Layout.of(page.tags.valueof))
            for number, page in enumerate(file.pages)
            if not int(page.tags.valueof(254) or 0) & _UNUSUAL_PAGES
        ]


def pages_are_bands(data: bytes | Path, channels: int) -> bool:
    """Whether a file holds as many plain grey pages, of one size and kind, as there are channels: 3 or 4.

    Pages of one bit are scans of text, and one page is a grey picture. False also if tifffile cannot read the
    tags of all pages: Pillow may still read the first one.
    """
    try:
        with _open(data) as file:
            first = Layout.of(file.pages[0].tags.valueof)
            if channels == 1 or not first.is_band or max(first.bits) == 1 or len(file.pages) < channels:
                return False
        pages = band_pages(data)
    except ValueError:
        return False
    return (
        len(pages) == channels
        and all(layout.is_band for _, layout in pages)
        and len({layout.kind for _, layout in pages}) == 1
    )


def read_page(
    data: bytes | Path,
    channels: int,
    value_range: ValueRange | None,
    check_size: Callable[[int, int], None],
    number: int = 0,
) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Reads a page of grey, RGB or bands with tifffile: [H, W, channels], as `decode_image` returns it.

    Args:
        check_size: given (width, height), raises an error if that is too large.
        number: the page.

    Raises ValueError for other photometric interpretations, and if tifffile cannot read the page.
    """
    with _open(data) as file:
        page: Any = file.pages[number]
        layout = Layout.of(page.tags.valueof)
        check_size(*layout.size)
        layout.check()
        _check_readable(page, layout, channels)
        try:
            samples = page.asarray(maxworkers=1)
        except (ValueError, NotImplementedError) as error:
            if "imagecodecs" not in str(error):
                raise
            if layout.pillow_unpacks_deep_colours:
                return _to_channels(_by_pillow(data, number, layout), layout, channels, value_range)
            how = f", compressed by {page.compression.name}" if layout.compression != 1 else ""
            raise ValueError(
                f"a TIFF, {layout.describe()}{how}, which needs `pip install imagecodecs`; or store "
                "it without compression or with deflate"
            ) from error
        if layout.samples == 1:
            samples = samples[..., np.newaxis]
        elif layout.is_planar:
            samples = np.moveaxis(samples, 0, 2)
        if samples.shape != (*layout.size[::-1], layout.samples):
            raise ValueError(
                f"a TIFF, {layout.describe()}, whose data are {list(samples.shape)}: it is damaged"
            )
        if layout.photometric == _YCBCR:
            samples = _to_rgb(samples)
        return _turn(_to_channels(samples, layout, channels, value_range), page.tags.valueof(274))


def _by_pillow(data: bytes | Path, number: int, layout: Layout) -> NDArray[np.uint16]:
    """Reads turned 16-bit colours [H, W, 3 or 4] whose compression tifffile alone cannot undo.

    Pillow keeps one byte of each number: the page is read for the upper bytes, and again for the lower ones.
    """
    mode = "RGB" if layout.samples == 3 else "RGBA"
    halves = []
    for order in "LB" if sys.byteorder == "little" else "BL":  # libtiff unpacks in the machine's order
        source = io.BytesIO(data) if isinstance(data, bytes) else data
        with Image.open(source, formats=["TIFF"]) as image:
            image.seek(number)
            ((*place, options),) = image.tile
            # The raw mode "L" keeps the second byte of each number, "B" the first.
            tiles: list[Any] = [(*place, (f"{mode};16{order}", *tuple(options or ())[1:]))]
            image.tile, image._mode = tiles, mode
            halves.append(np.asarray(ImageOps.exif_transpose(image)).astype(np.uint16))
    return np.asarray(halves[0] << 8 | halves[1], np.uint16)


@contextmanager
def _open(data: bytes | Path) -> Iterator[Any]:
    """Opens a file with tifffile; the errors that its tags cause become ValueErrors."""
    import tifffile

    # tifffile logs oddities to stderr; serious problems are raised as errors.
    logging.getLogger("tifffile").addHandler(logging.NullHandler())
    try:
        with tifffile.TiffFile(io.BytesIO(data) if isinstance(data, bytes) else data) as file:
            yield file
    except (TypeError, LookupError, tifffile.TiffFileError, struct.error) as error:
        raise ValueError(
            f"a TIFF that neither Pillow nor tifffile can read ({type(error).__name__}: {error})"
        ) from error


def _check_readable(page: Any, layout: Layout, channels: int) -> None:
    colours = _COLOURS.get(layout.photometric)
    is_plain = layout.samples == 3 and set(layout.bits) == {8} and layout.compression == 1
    if colours is None or (layout.photometric == _YCBCR and not is_plain):
        raise ValueError(
            f"a TIFF, {layout.describe()}, which is not read: convert it to RGB or grey, or to a .npy array"
        )
    if page.dtype is None and len(set(layout.formats)) == len(set(layout.bits)) == 1:
        raise ValueError(f"a TIFF, {layout.describe()}, which holds no pixels that can be read")
    if page.dtype is None or len(set(layout.formats)) > 1:
        raise ValueError(
            f"a TIFF with SampleFormat {list(layout.formats)} and BitsPerSample {list(layout.bits)}: store "
            "samples of one kind, integers or floats"
        )
    if min(layout.bits) < 8:
        raise ValueError(f"a TIFF, {layout.describe()}: store 8 bits or more, or pages of one sample")
    if page.imagedepth != 1:
        raise ValueError(f"a TIFF of {page.imagedepth} layers: store one image, or a page for each layer")
    if layout.has_bands(channels):
        return
    is_spectral = colours == 1 and layout.extras.count(_UNSPECIFIED) > 1
    if is_spectral and layout.has_alpha and layout.samples in (3, 4):
        raise ValueError(
            f"a TIFF of {layout.samples} grey samples per pixel whose ExtraSamples {list(layout.extras)} "
            f"mark one as alpha (1 or 2): for {layout.samples} bands of equal rank, store 0 for each; for "
            "colours, store PhotometricInterpretation RGB"
        )
    if channels not in (1, 3, 4) or layout.samples < colours or is_spectral:
        raise ValueError(
            f"a TIFF of {layout.samples} sample(s) per pixel, not of {channels} channels: ask for as many as "
            "it has"
        )
    if layout.samples > colours and not layout.extras and not layout.is_rgba:
        raise ValueError(
            f"a TIFF of {layout.samples} samples per pixel that does not state what those after the first "
            f"{colours} mean (ExtraSamples): ask for as many channels as it has"
        )


def _to_channels(
    samples: NDArray[Any], layout: Layout, channels: int, value_range: ValueRange | None
) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Converts the samples [H, W, S] of a page to the wanted channels."""
    is_eight_bit = samples.dtype == np.uint8 and set(layout.bits) == {8}
    has_bands = layout.has_bands(channels)
    count = channels if has_bands else _COLOURS[layout.photometric]
    known = layout.default_range() if value_range is None else value_range
    colours = deep_to_fractions(samples[..., :count], known)
    if layout.photometric == _WHITE_IS_ZERO:
        colours = 1 - colours
    if has_bands:
        # Four channels of uint8 would mean RGBA, whose colours a resize weights by the fourth.
        return to_bytes(colours) if is_eight_bit and channels != 4 else colours

    alpha = _alpha(samples, layout, count, value_range)
    if alpha is not None and layout.extras and _ASSOCIATED in layout.extras:
        colours = unpremultiply(colours, alpha)
    if channels == 4:
        colour = np.repeat(colours, 3, axis=2) if count == 1 else colours
        opaque = np.ones_like(colour[..., :1])
        picture = np.concatenate([colour, opaque if alpha is None else alpha], axis=2)
        return to_bytes(picture) if is_eight_bit or alpha is not None else picture

    if alpha is not None:
        colours = colours * alpha + (1 - alpha)  # over white
    if (count, channels) == (3, 1):
        colours = (colours @ _LUMA)[..., np.newaxis]
    elif (count, channels) == (1, 3):
        colours = np.repeat(colours, 3, axis=2)
    return to_bytes(colours) if is_eight_bit else colours


def _to_rgb(samples: NDArray[Any]) -> NDArray[np.uint8]:
    """Converts YCbCr [H, W, 3] of 8 bits as JPEG files have it, which is what TIFF's default tags say."""
    height, width, _ = samples.shape
    picture = Image.frombytes("YCbCr", (width, height), np.ascontiguousarray(samples).tobytes())
    return np.asarray(picture.convert("RGB"))


def _alpha(
    samples: NDArray[Any], layout: Layout, first: int, value_range: ValueRange | None
) -> NDArray[np.float32] | None:
    """Returns the opacity [H, W, 1] in [0, 1], or None if no sample holds it."""
    if not layout.is_rgba:
        return None
    kinds = layout.extras or (_UNASSOCIATED,)
    place = first + next(i for i, kind in enumerate(kinds) if kind in (_ASSOCIATED, _UNASSOCIATED))
    known = layout.default_range()
    if known is None and value_range is not None and samples.dtype.kind in "iu":
        known = (0, int(np.iinfo(samples.dtype).max))  # the value range is that of the colours
    return deep_to_fractions(samples[..., place : place + 1], known)


def _turn(picture: NDArray[Any], orientation: int | None) -> NDArray[Any]:
    """Applies the Orientation tag, 1 to 8."""
    if orientation in (5, 6, 7, 8):
        picture = np.swapaxes(picture, 0, 1)
    if orientation in (2, 3, 6, 7):
        picture = picture[:, ::-1]
    if orientation in (3, 4, 7, 8):
        picture = picture[::-1]
    return np.ascontiguousarray(picture)
