"""Decodes one image into an array: handles every file format, mode and defect."""

from __future__ import annotations

import io
import stat
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, PngImagePlugin, UnidentifiedImageError

from latentae.data.arrays import (
    ARRAY_MAGIC,
    ARRAY_SUFFIXES,
    ValueRange,
    deep_to_fractions,
    read_array,
    to_bytes,
    to_pixels,
)
from latentae.data.names import picture_suffixes, printable, printable_name
from latentae.data.tiff import TIFF_MAGIC, Layout, band_pages, pages_are_bands, read_page

MAX_PIXELS = 200_000_000
"""Pixels of the largest picture that is decoded by default: the largest that phones take."""

# Formats that Pillow knows but that are not read: why, and what to do.
REFUSED_FORMATS = {
    "EPS": "Pillow would start Ghostscript on it: convert it to PNG",
    "WMF": "only Windows can draw it: convert it to PNG",
    "FITS": "Pillow ignores BZERO and BSCALE, which its numbers need: convert it to .npy",
    "BUFR": "it holds weather data and no picture",
    "GRIB": "it holds weather data and no picture",
    "HDF5": "it holds arrays of any kind: convert them to .npy",
    "MPEG": "it is a video: extract its frames",
}
Image.init()
# The formats that are read: all others that Pillow knows, also from plugins. Formats with a magic number
# come first, so that the others are not tried on their files.
FORMATS = tuple(
    sorted(
        (name for name in Image.ID if name not in REFUSED_FORMATS),
        key=lambda name: Image.OPEN[name][1] is None,
    )
)
PICTURE_SUFFIXES = picture_suffixes(FORMATS)
IMAGE_SUFFIXES = (*PICTURE_SUFFIXES, *ARRAY_SUFFIXES)
PICTURE_CHANNELS = (1, 3, 4)  # every picture can be converted to these
_LONGEST_REASON = 600
_BY_WAY_OF = {"LAB": "RGB", "La": "LA"}  # the only modes that Pillow converts these to

Pixels = NDArray[np.uint8] | NDArray[np.float32]


class BrokenImageError(ValueError):
    """An image could not be decoded. The message is `<name of the image>: <why>`, one printable line."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(" ".join(message.splitlines())))


@dataclass(frozen=True)
class _Request:
    """The arguments of `decode_image`."""

    channels: int
    value_range: ValueRange | None
    max_pixels: int
    minimum_side: int | None = None

    def check_size(self, width: int, height: int) -> None:
        # Between its limit and twice the limit Pillow only warns. A filter that turns this warning into an
        # error would not be safe in threads.
        if width * height > self.max_pixels:
            raise ValueError(self.too_large(f"{width} by {height} are {width * height}"))

    def too_large(self, pixels: str) -> str:
        return (
            f"{pixels} pixels, more than the limit of {self.max_pixels}: unless it is a decompression bomb, "
            "raise data.max_pixels (--max-pixels of the other commands)"
        )


def check_channels(channels: int) -> None:
    """Raises ValueError unless an image can have this number of channels."""
    if channels < 1:
        raise ValueError(
            f"channels={channels} must be 1 or more: pictures decode to 1 (grey), 3 (RGB) or 4 (RGBA) "
            "channels, arrays (.npy) have any number"
        )


def check_alpha(channels: int, *, several: bool = False) -> None:
    """Raises ValueError if RGBA images are asked for, and models take another number of channels.

    Args:
        channels: of the images that the model takes.
        several: whether the message is about several models.
    """
    if channels == 4:
        return
    take, name = ("models take", "RGBA models") if several else ("model takes", "an RGBA model")
    raise ValueError(
        f"alpha is set, but the {take} images of {channels} channels, and images with transparency have "
        f"four: leave --alpha out, or name {name}"
    )


def decode_image(
    data: bytes | Path | Image.Image,
    channels: int,
    minimum_side: int | None = None,
    *,
    max_pixels: int | None = None,
    name: str | None = None,
    value_range: ValueRange | None = None,
) -> Pixels:
    """Decodes an image file of any format Pillow reads or a .npy file, or converts an open PIL image.

    The content decides what a file is, not its suffix; see `FORMATS`.

    Args:
        data: the bytes of a file, its path, or a PIL image (which is not changed).
        channels: 1 (grey, ITU-R 601 luma), 3 (RGB) or 4 (RGBA, opaque if the file has no alpha). Any other
            number needs a .npy file with as many channels, or a TIFF with as many samples per pixel or as
            many grey pages. 3 and 4 may also be the grey pages of a TIFF that has exactly so many, of one
            size and of more than one bit, and 4 a TIFF with four samples of which none is alpha.
        minimum_side: if given, a JPEG is decoded at the smallest of 1/1, 1/2, 1/4 and 1/8 of its size whose
            shorter side still has this many pixels, which is several times faster.
        max_pixels: pictures with more pixels count as broken (a decompression bomb takes all memory);
            None: `MAX_PIXELS`. A .npy file is not compressed, so it has no limit.
        name: the name of the image in errors; None: its path, if there is one.
        value_range: for images of more than 8 bits, the stored numbers that stand for black and for white;
            numbers outside are clipped. None: 0 and the largest number of 9 to 16 bits, 0 and 1 for floats.

    Returns:
        [height, width, channels], uint8 in [0, 255]; float32 in [0, 1] for grey images and RGB TIFFs of more
        than 8 bits and for floats. Pillow reduces other colour files with 16 bits per channel to 8, and all
        deep images become 8 bits where their transparency is kept. The orientation (EXIF) is applied.
        Transparency (an alpha channel, a transparent palette entry or colour) is composited over white if
        channels is 1 or 3, and kept if it is 4. If channels is 1, 3 or 4, the first page or frame is decoded,
        unless the pages are bands. Arrays (.npy) are read by `to_pixels`: they must have exactly these
        channels, and a large uint8 array is memory-mapped and read-only.

    Raises:
        ValueError: channels is less than 1.
        BrokenImageError: the image is empty, truncated, of another format, too large or unreadable, it does
            not have that number of channels, or its numbers have a meaning that is not supported (see
            `Layout`).
    """
    check_channels(channels)
    label = printable_name(name or _label(data))
    request = _Request(channels, value_range, MAX_PIXELS if max_pixels is None else max_pixels, minimum_side)
    try:
        with _pillow_limit(request.max_pixels):
            if isinstance(data, Image.Image):
                request.check_size(*data.size)
                return _to_array(ImageOps.exif_transpose(data), request)
            beginning = _beginning(data)
            if beginning.startswith(ARRAY_MAGIC):
                return to_pixels(read_array(data, value_range), channels, value_range)
            if beginning.startswith(TIFF_MAGIC):
                return _decode_tiff(data, request)
            try:
                return _decode_file(data, request)
            except ValueError:
                if not beginning.startswith(PNG_MAGIC):
                    raise
                # Pillow also has limits for texts and profiles.
                return _decode_file(without_text(_read(data)), request)
    except MemoryError:  # the fault of this machine, not of the image
        raise
    except UnidentifiedImageError as error:
        raise BrokenImageError(f"{label}: {_unidentified(data)}") from error
    except Image.DecompressionBombError as error:
        raise BrokenImageError(f"{label}: {_describe_bomb(data, error, request)}") from error
    except Exception as error:  # Pillow's decoders fail in a dozen ways: SyntaxError, struct.error, ...
        reason = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        reason = printable(" ".join(reason.split()), _LONGEST_REASON)  # it may contain a name of any length
        raise BrokenImageError(f"{label}: {reason}") from error


class _PillowLimit:
    """Counts the threads that are decoding, and remembers Pillow's limit from before the first of them."""

    lock = threading.Lock()
    decoding = 0
    before: int | None = None


@contextmanager
def _pillow_limit(max_pixels: int) -> Iterator[None]:
    """Raises Pillow's limit, `PIL.Image.MAX_IMAGE_PIXELS`, to at least `max_pixels`.

    Pillow has one limit for all threads. It is restored when no thread decodes any more.
    `_Request.check_size` applies each picture's own `max_pixels`.
    """
    with _PillowLimit.lock:
        if not _PillowLimit.decoding:
            _PillowLimit.before = Image.MAX_IMAGE_PIXELS
        _PillowLimit.decoding += 1
        if Image.MAX_IMAGE_PIXELS is not None:
            Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, max_pixels)
    try:
        yield
    finally:
        with _PillowLimit.lock:
            _PillowLimit.decoding -= 1
            if not _PillowLimit.decoding:
                Image.MAX_IMAGE_PIXELS = _PillowLimit.before


def _decode_file(data: bytes | Path, request: _Request) -> Pixels:
    """Decodes a file of any format but TIFF and .npy."""
    with _open(data) as image:
        request.check_size(*image.size)
        if request.minimum_side is not None:
            image.draft(None, (request.minimum_side, request.minimum_side))
        _check_sixteen_bits(image, request)
        _scale_transparency(image)
        ImageOps.exif_transpose(image, in_place=True)
        return _to_array(image, request)


def _open(data: bytes | Path) -> ImageFile.ImageFile:
    return Image.open(io.BytesIO(data) if isinstance(data, bytes) else data, formats=FORMATS)


def _read(data: bytes | Path) -> bytes:
    return data if isinstance(data, bytes) else data.read_bytes()


def _label(data: bytes | Path | Image.Image) -> str:
    if isinstance(data, Path):
        return str(data)
    if isinstance(data, Image.Image):
        return str(getattr(data, "filename", "") or "PIL image")
    return f"image of {len(data)} bytes"


def _beginning(data: bytes | Path) -> bytes:
    """Reads the first bytes of a file; raises ValueError if it is empty."""
    if isinstance(data, bytes):
        beginning = data[:16]
    else:
        if not stat.S_ISREG(data.stat().st_mode):  # opening a pipe would wait forever
            raise ValueError("it is not a file, but a folder, a pipe or a device")
        with data.open("rb") as stream:
            beginning = stream.read(16)
    if not beginning:
        raise ValueError("it is empty (0 bytes)")
    return beginning


def _unidentified(data: bytes | Path | Image.Image) -> str:
    reason = "not an image that Pillow reads, nor a .npy array"
    if isinstance(data, Image.Image):
        return reason
    beginning = _beginning(data)
    for refused, why in REFUSED_FORMATS.items():
        accept = Image.OPEN[refused][1] if refused in Image.OPEN else None
        if accept is not None and accept(beginning):
            return f"a file of the format {refused}, which is not read: {why}"
    beginning = beginning.strip()
    if beginning.isascii() and beginning.decode().isprintable():  # a page of HTML, a pointer of Git LFS
        reason += f": it is a text that begins with {beginning.decode()!r}"
    return reason


def _describe_bomb(
    data: bytes | Path | Image.Image, error: Image.DecompressionBombError, request: _Request
) -> str:
    """Says why Pillow refused to open a picture, with the width and height, which Pillow does not state."""
    size = None if isinstance(data, Image.Image) else stated_size(data)
    if size is not None and size[0] * size[1] > request.max_pixels:
        return request.too_large(f"{size[0]} by {size[1]} are {size[0] * size[1]}")
    # A picture inside another one, as in an icon.
    count = next((word[1:] for word in str(error).split() if word[:1] == "("), "?")
    return request.too_large(count)


def stated_size(data: bytes | Path) -> tuple[int, int] | None:
    """Reads width and height from the header of a picture, without the limit of `Image.open`."""
    beginning = _beginning(data)
    with io.BytesIO(data) if isinstance(data, bytes) else data.open("rb") as stream:
        for name in FORMATS:
            factory, accept = Image.OPEN[name]
            if accept is None or accept(beginning) is True:
                stream.seek(0)
                # Errors by which `Image.open` recognises another format, and a bomb inside this one.
                with suppress(SyntaxError, IndexError, TypeError, struct.error, Image.DecompressionBombError):
                    return factory(stream, "").size
    return None


def _check_sixteen_bits(image: ImageFile.ImageFile, request: _Request) -> None:
    """Refuses a `value_range` for colours of 16 bits, of which Pillow keeps 8."""
    is_deep = any(";16" in str(tile[3]) for tile in image.tile) and not image.mode.startswith("I")
    if is_deep and request.value_range not in (None, (0, 65535)):
        raise ValueError(
            f"a {image.format} of 16 bits in mode {image.mode}, of which Pillow keeps 8, and value_range is "
            f"{list(request.value_range or ())}: store it as TIFF or .npy, or leave value_range out"
        )


def _scale_transparency(image: ImageFile.ImageFile) -> None:
    """Scales the transparent colour of a PNG from the bits of the file to the 8 bits of the pixels."""
    key = image.info.get("transparency")
    rawmode = str(image.tile[0][3]) if image.tile else ""
    if isinstance(key, int) and rawmode in ("L;2", "L;4"):
        image.info["transparency"] = key * (85 if rawmode == "L;2" else 17)
    elif isinstance(key, tuple) and rawmode == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in key)


def _decode_tiff(data: bytes | Path, request: _Request) -> Pixels:
    """Decodes the first page of a TIFF, or as many pages as there are channels."""
    if request.channels in PICTURE_CHANNELS and not pages_are_bands(data, request.channels):
        return _decode_page(data, 0, request)
    pages = band_pages(data)
    if len(pages) == 1 and pages[0][1].has_bands(request.channels):
        return _decode_page(data, pages[0][0], request)
    if len(pages) != request.channels:
        shown = f" of {pages[0][1].samples} sample(s)" if len(pages) == 1 else ""
        raise ValueError(f"a TIFF of {len(pages)} page(s){shown}, {_no_such_channels(request.channels)}")
    for _, layout in pages:
        request.check_size(*layout.size)
    kinds = {f"{layout.photometric_name} {layout.size[0]}x{layout.size[1]}" for _, layout in pages}
    if len(kinds) > 1 or not all(layout.is_band for _, layout in pages):
        raise ValueError(
            f"a TIFF with pages of {', '.join(sorted(kinds))}: to be the bands of one image, all must be "
            "grey and of one size"
        )
    bands: list[NDArray[Any]] = [
        _decode_page(data, number, replace(request, channels=1)) for number, _ in pages
    ]
    if len({band.dtype for band in bands}) > 1:
        raise ValueError(
            "a TIFF with pages of different bits: to be the bands of one image, all must have the same"
        )
    pixels = np.concatenate(bands, axis=2)
    # Four channels of uint8 would mean RGBA, whose colours a resize weights by the fourth.
    return deep_to_fractions(pixels, None) if request.channels == 4 else pixels


def _decode_page(data: bytes | Path, number: int, request: _Request) -> Pixels:
    """Decodes one page of a TIFF: by Pillow if it follows the page's tags, else by tifffile."""
    try:
        with _open(data) as image:
            image.seek(number)
            tags = image.tag_v2  # type: ignore[attr-defined]
            layout = Layout.of(tags.get)
            if layout.pillow_reads(request.channels, request.value_range, tags.prefix == b"MM"):
                request.check_size(*image.size)
                layout.check()
                known = layout.default_range() if request.value_range is None else request.value_range
                return _to_array(ImageOps.exif_transpose(image), replace(request, value_range=known))
    except (UnidentifiedImageError, SyntaxError):
        # By these errors Pillow says that it has no mode for this page, or cannot make sense of its tags.
        # Nothing is hidden: tifffile reads the page from its tags, or raises an error of its own.
        pass
    return read_page(data, request.channels, request.value_range, request.check_size, number)


def _no_such_channels(channels: int) -> str:
    return (
        f"not of {channels} channels: pictures decode to 1 (grey), 3 (RGB) or 4 (RGBA); store an image of "
        f"{channels} as a .npy array [H, W, {channels}], or as a TIFF of {channels} samples per pixel or "
        "grey pages"
    )


def _to_array(image: Image.Image, request: _Request) -> Pixels:
    channels = request.channels
    if channels not in PICTURE_CHANNELS:
        raise ValueError(f"a {image.format or image.mode} picture, {_no_such_channels(channels)}")
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_grey_to_array(image, channels, request.value_range)
    if image.mode in _BY_WAY_OF:
        image = image.convert(_BY_WAY_OF[image.mode])
    if channels == 4:
        return np.array(image.convert("RGBA"))
    mode = "L" if channels == 1 else "RGB"
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.array(image.convert(mode)).reshape(image.height, image.width, channels)


def _deep_grey_to_array(image: Image.Image, channels: int, value_range: ValueRange | None) -> Pixels:
    values = np.asarray(image)
    grey = deep_to_fractions(values, value_range)[..., np.newaxis]
    key = image.info.get("transparency")  # of a PNG: the value of its transparent pixels
    alpha = np.ones_like(grey) if key is None else (values != key)[..., np.newaxis].astype(np.float32)
    if channels == 4:
        picture = np.concatenate([grey, grey, grey, alpha], axis=2)
        # Four channels of uint8 mean RGBA, whose colours a resize weights by alpha.
        return picture if key is None else to_bytes(picture)
    grey = np.where(alpha > 0, grey, np.float32(1))
    return np.repeat(grey, channels, axis=2)


PNG_MAGIC = b"\x89PNG\r\n\x1a\n"

_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
# The texts in which Pillow looks for an orientation: see `ImageOps.exif_transpose`.
_ORIENTING = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")


def without_text(data: bytes) -> bytes:
    """Removes the colour profile and the texts of a PNG file, which do not affect how its pixels are read.

    Texts that may state the orientation are kept, unless Pillow would refuse them for their size. Anything
    after a damaged part is kept for the decoder.
    """
    kept = [data[: len(PNG_MAGIC)]]
    begin = len(PNG_MAGIC)
    while begin + 12 <= len(data):
        length = int.from_bytes(data[begin : begin + 4], "big")
        kind, end = data[begin + 4 : begin + 8], begin + 12 + length
        if kind == b"IEND":
            break
        if kind != b"iCCP" and (kind not in _TEXTS or _is_small_orientation(kind, data[begin + 8 : end - 4])):
            kept.append(data[begin:end])
        begin = end
    return b"".join([*kept, data[begin:]])


def _is_small_orientation(kind: bytes, content: bytes) -> bool:
    if not content.startswith(_ORIENTING):
        return False
    _, _, text = content.partition(b"\0")
    limit = PngImagePlugin.MAX_TEXT_CHUNK
    if kind == b"tEXt":
        return len(text) <= limit
    if kind == b"iTXt":
        is_compressed, text = text[:1] != b"\0", text[2:].split(b"\0", 2)[-1]
        if not is_compressed:
            return len(text) <= limit
    else:
        text = text[1:]  # the method of compression
    decompressor = zlib.decompressobj()
    try:
        decompressor.decompress(text, limit)
    except zlib.error:  # Pillow ignores such a text
        return False
    return not decompressor.unconsumed_tail
