"""PNG files without the texts and profiles that Pillow's limits would refuse."""

from __future__ import annotations

import zlib

from PIL import PngImagePlugin

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"

_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
# The texts that Pillow looks for an orientation in: see `ImageOps.exif_transpose`.
_ORIENTING = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")


def without_text(data: bytes) -> bytes:
    """A PNG file without its colour profile and its texts, which have no part in how its pixels are read.

    Texts that may say how the picture is turned stay, unless Pillow would refuse them for their size. What
    follows damage is kept as it is, for the decoder to judge.
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
    except zlib.error:  # Pillow leaves such a text out
        return False
    return not decompressor.unconsumed_tail
