"""Decode one image into an array: every common file format, mode and defect in one place."""

from __future__ import annotations

import io
import stat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError

from latentae.data.arrays import ARRAY_MAGIC, ARRAY_SUFFIXES, read_array, to_pixels
from latentae.data.levels import ValueRange, to_fractions
from latentae.data.suffixes import picture_suffixes

# The only decoders that are tried. Pillow has more, but a data set has no business starting
# Ghostscript because one of its files says that it is an EPS.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP")
PICTURE_SUFFIXES = picture_suffixes(FORMATS)
IMAGE_SUFFIXES = (*PICTURE_SUFFIXES, *ARRAY_SUFFIXES)
PICTURE_CHANNELS = (1, 3, 4)  # what every picture can be converted to

_TIFF_MAGIC = (b"II*\0", b"MM\0*")


class BrokenImageError(ValueError):
    """An image could not be decoded; the message is `<which image>: <why>`."""


def check_channels(channels: int) -> None:
    """Raise ValueError unless some image has this number of channels."""
    if channels < 1:
        raise ValueError(
            f"channels={channels} must be 1 or more: pictures decode to 1 (grey), 3 (RGB) or 4 (RGBA) "
            "channels, arrays (.npy) have any number"
        )


def decode_image(
    data: bytes | Path | Image.Image,
    channels: int,
    *,
    minimum_side: int | None = None,
    max_pixels: int | None = None,
    name: str | None = None,
    value_range: ValueRange | None = None,
) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Decode a PNG, JPEG, WebP, TIFF, BMP or .npy file, or convert an open PIL image.

    Args:
        data: the bytes of a file, its path, or a PIL image (which is left as it is).
        channels: 1 (grey, ITU-R 601 luma), 3 (RGB) or 4 (RGBA, opaque where the file has no alpha). Any
            other number is had from a .npy file with as many, or a TIFF with as many pages, each grey.
        minimum_side: where given, a JPEG is decoded at the smallest of 1/1, 1/2, 1/4 and 1/8 of its
            size whose shorter side still has this many pixels, which is several times faster.
        max_pixels: pictures with more pixels count as broken (a decompression bomb takes all memory);
            None: Pillow's own limit, `PIL.Image.MAX_IMAGE_PIXELS`, which a larger value cannot lift
            beyond its double. A .npy file is not compressed, and has no limit.
        name: what to call the image in an error; None: the path, where there is one.
        value_range: of images of more than 8 bits, the stored numbers that stand for black and for white;
            what lies outside is clipped. None: 0 and 65535 for 16 bits, 0 and 1 for floats.

    Returns:
        [height, width, channels], uint8 in [0, 255]; float32 in [0, 1] for grey images of 16 bits
        (modes I;16 and I) and of floats (mode F). Colour files of 16 bits a channel come out of Pillow as 8.
        The EXIF orientation is applied. Transparency (an alpha channel, a transparent palette entry or
        colour) is composited over white when channels is 1 or 3, and kept when it is 4. Of an
        image of several pages or frames, the first, when channels is 1, 3 or 4. Arrays (.npy) as
        `to_pixels` has it: they must have exactly these channels, and a large one of uint8 is read-only,
        its pixels read when they are used.

    Raises:
        ValueError: channels is less than 1.
        BrokenImageError: the image is empty, truncated, of another format, too large, unreadable, or has not
            that number of channels.
    """
    check_channels(channels)
    label = name or _label(data)
    try:
        if isinstance(data, Image.Image):
            _check_size(data, max_pixels)
            return _to_array(ImageOps.exif_transpose(data), channels, value_range)
        if _begins_with(data, ARRAY_MAGIC):
            return to_pixels(read_array(data, value_range), channels, value_range)
        with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data, formats=FORMATS) as image:
            _check_size(image, max_pixels)
            if channels not in PICTURE_CHANNELS and image.format == "TIFF":
                return _pages_to_array(image, channels, max_pixels, value_range)
            if minimum_side is not None:
                image.draft(None, (minimum_side, minimum_side))
            ImageOps.exif_transpose(image, in_place=True)
            return _to_array(image, channels, value_range)
    except MemoryError:  # says something about this machine, not about the image
        raise
    except UnidentifiedImageError as error:
        raise BrokenImageError(f"{label}: {_unidentified(data)}") from error
    except Exception as error:  # Pillow's decoders fail in a dozen ways: SyntaxError, struct.error, ...
        reason = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise BrokenImageError(f"{label}: {' '.join(reason.split())}") from error


def _label(data: bytes | Path | Image.Image) -> str:
    if isinstance(data, Path):
        return str(data)
    if isinstance(data, Image.Image):
        return str(getattr(data, "filename", "") or "PIL image")
    return f"image of {len(data)} bytes"


def _beginning(data: bytes | Path) -> bytes:
    """The first bytes of a file, whose content decides and not its suffix; ValueError where it is empty."""
    if isinstance(data, bytes):
        beginning = data[:16]
    else:
        if not stat.S_ISREG(data.stat().st_mode):  # opening a pipe would wait for ever
            raise ValueError("it is no file, but a folder, a pipe or a device")
        with data.open("rb") as stream:
            beginning = stream.read(16)
    if not beginning:
        raise ValueError("it is empty (0 bytes)")
    return beginning


def _begins_with(data: bytes | Path, *beginnings: bytes) -> bool:
    return _beginning(data).startswith(beginnings)


def _unidentified(data: bytes | Path | Image.Image) -> str:
    reason = f"not a {', '.join(FORMATS)} image, nor a .npy array"
    if isinstance(data, Image.Image):
        return reason
    beginning = _beginning(data).strip()
    if beginning.startswith(_TIFF_MAGIC):
        return (
            "a TIFF that Pillow cannot read (it knows no page of many bands): store each band as a page of "
            "its own, or the image as a .npy array"
        )
    if beginning.isascii() and beginning.decode().isprintable():  # a page of HTML, a pointer of Git LFS
        reason += f": it is a text that begins with {beginning.decode()!r}"
    return reason


def _check_size(image: Image.Image, max_pixels: int | None) -> None:
    # Pillow only warns between its limit and twice that. Turning that warning into an error by a filter
    # would not be safe in threads; the size is known before any pixel is decoded, so it is checked here.
    limit = Image.MAX_IMAGE_PIXELS if max_pixels is None else max_pixels
    pixels = image.width * image.height
    if limit is not None and pixels > limit:
        raise ValueError(
            f"{image.width} by {image.height} are {pixels} pixels, more than the limit of {limit}: "
            "a decompression bomb, or raise PIL.Image.MAX_IMAGE_PIXELS"
        )


def _pages_to_array(
    image: Image.Image, channels: int, max_pixels: int | None, value_range: ValueRange | None
) -> NDArray[np.uint8] | NDArray[np.float32]:
    """[H, W, channels] of a TIFF that has a grey page for each channel."""
    count = getattr(image, "n_frames", 1)
    if count != channels:
        raise ValueError(f"a TIFF of {count} page(s), {_no_such_channels(channels)}")
    pages: list[NDArray[Any]] = []
    kinds = set()
    for page in ImageSequence.Iterator(image):
        _check_size(page, max_pixels)
        kinds.add((page.mode, page.size))
        pages.append(_to_array(ImageOps.exif_transpose(page), 1, value_range))
    if len(kinds) > 1 or image.mode not in ("L", "I", "I;16", "I;16B", "F"):
        shown = ", ".join(f"{mode} {width}x{height}" for mode, (width, height) in sorted(kinds))
        raise ValueError(
            f"a TIFF with pages of {shown}: to be the bands of one image, all must be grey, of 8 or 16 bits "
            "or of floats, and of one size"
        )
    return np.concatenate(pages, axis=2)


def _no_such_channels(channels: int) -> str:
    return (
        f"not of {channels} channels: pictures decode to 1 (grey), 3 (RGB) or 4 (RGBA); store an image of "
        f"{channels} as a .npy array [H, W, {channels}], or as a TIFF of {channels} grey pages"
    )


def _to_array(
    image: Image.Image, channels: int, value_range: ValueRange | None
) -> NDArray[np.uint8] | NDArray[np.float32]:
    if channels not in PICTURE_CHANNELS:
        raise ValueError(f"a {image.format or image.mode} picture, {_no_such_channels(channels)}")
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_grey_to_array(image, channels, value_range)
    if channels == 4:
        return np.array(image.convert("RGBA"))
    mode = "L" if channels == 1 else "RGB"
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.array(image.convert(mode)).reshape(image.height, image.width, channels)


def _deep_grey_to_array(
    image: Image.Image, channels: int, value_range: ValueRange | None
) -> NDArray[np.float32]:
    values = np.asarray(image)
    if image.mode != "F" and value_range is None:
        value_range = (0, 65535)  # mode I has 32 bits, in which Pillow gives images of 16
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(
                f"mode {image.mode} with values {values.min()} to {values.max()}, not 0 to 65535: set "
                "value_range to the numbers of black and white"
            )
    grey = to_fractions(values, value_range)[..., np.newaxis]
    if channels == 1:
        return grey
    colour = np.repeat(grey, 3, axis=2)
    return colour if channels == 3 else np.concatenate([colour, np.ones_like(grey)], axis=2)
