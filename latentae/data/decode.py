"""Decode one picture into an array: every common file format, mode and defect in one place."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

# The only decoders that are tried. Pillow has more, but a data set has no business starting
# Ghostscript because one of its files says that it is an EPS.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
SUPPORTED_CHANNELS = (1, 3, 4)


class BrokenImageError(ValueError):
    """An image could not be decoded; the message is `<which image>: <why>`."""


def check_channels(channels: int) -> None:
    """Raise ValueError unless pictures can be decoded into this number of channels."""
    if channels not in SUPPORTED_CHANNELS:
        raise ValueError(
            f"channels={channels}: pictures decode to 1 (grey), 3 (RGB) or 4 (RGBA) channels; "
            "for any other number give the loader an ImageSource of your own, whose load() returns arrays"
        )


def decode_image(
    data: bytes | Path | Image.Image,
    channels: int,
    *,
    minimum_side: int | None = None,
    max_pixels: int | None = None,
    name: str | None = None,
) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Decode a PNG, JPEG, WebP, TIFF or BMP file, or convert an open PIL image.

    Args:
        data: the bytes of a file, its path, or a PIL image (which is left as it is).
        channels: 1 (grey, ITU-R 601 luma), 3 (RGB) or 4 (RGBA, opaque where the file has no alpha).
        minimum_side: where given, a JPEG is decoded at the smallest of 1/1, 1/2, 1/4 and 1/8 of its
            size whose shorter side still has this many pixels, which is several times faster.
        max_pixels: images with more pixels count as broken (a decompression bomb takes all memory);
            None: Pillow's own limit, `PIL.Image.MAX_IMAGE_PIXELS`, which a larger value cannot lift
            beyond its double.
        name: what to call the image in an error; None: the path, where there is one.

    Returns:
        [height, width, channels], uint8 in [0, 255]; float32 in [0, 1] for grey images of 16 bits
        (modes I;16 and I, divided by 65535). Colour files of 16 bits a channel come out of Pillow as 8.
        The EXIF orientation is applied. Transparency (an alpha channel, a transparent palette entry or
        colour) is composited over white when channels is 1 or 3, and kept when it is 4. Of an
        image of several pages or frames, the first.

    Raises:
        ValueError: channels is not 1, 3 or 4.
        BrokenImageError: the image is empty, truncated, of another format, too large, or unreadable.
    """
    check_channels(channels)
    label = name or _label(data)
    try:
        if isinstance(data, Image.Image):
            _check_size(data, max_pixels)
            return _to_array(ImageOps.exif_transpose(data), channels)
        if isinstance(data, bytes) and not data:
            raise ValueError("it is empty (0 bytes)")
        with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data, formats=FORMATS) as image:
            _check_size(image, max_pixels)
            if minimum_side is not None:
                image.draft(None, (minimum_side, minimum_side))
            ImageOps.exif_transpose(image, in_place=True)
            return _to_array(image, channels)
    except MemoryError:  # says something about this machine, not about the image
        raise
    except UnidentifiedImageError as error:
        raise BrokenImageError(f"{label}: not a {', '.join(FORMATS)} image") from error
    except Exception as error:  # Pillow's decoders fail in a dozen ways: SyntaxError, struct.error, ...
        reason = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise BrokenImageError(f"{label}: {' '.join(reason.split())}") from error


def _label(data: bytes | Path | Image.Image) -> str:
    if isinstance(data, Path):
        return str(data)
    if isinstance(data, Image.Image):
        return str(getattr(data, "filename", "") or "PIL image")
    return f"image of {len(data)} bytes"


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


def _to_array(image: Image.Image, channels: int) -> NDArray[np.uint8] | NDArray[np.float32]:
    if image.mode.startswith("I"):
        return _deep_grey_to_array(image, channels)
    if image.mode == "F":
        raise ValueError("mode F (32-bit float) has no fixed range of values; store 8 or 16 bits")
    if channels == 4:
        return np.array(image.convert("RGBA"))
    mode = "L" if channels == 1 else "RGB"
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.array(image.convert(mode)).reshape(image.height, image.width, channels)


def _deep_grey_to_array(image: Image.Image, channels: int) -> NDArray[np.float32]:
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"mode {image.mode} with values {values.min()} to {values.max()}, not 0 to 65535")
    grey = (values.astype(np.float32) / np.float32(65535))[..., np.newaxis]
    if channels == 1:
        return grey
    colour = np.repeat(grey, 3, axis=2)
    return colour if channels == 3 else np.concatenate([colour, np.ones_like(grey)], axis=2)
