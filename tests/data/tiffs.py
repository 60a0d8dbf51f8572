"""TIFF files written tag by tag, so that what a test expects does not come from the library that it tests."""

import struct

_CODES = {1: "B", 3: "H", 4: "I", 5: "II"}  # of the types BYTE, SHORT, LONG, RATIONAL

BITS, COMPRESSION, PHOTOMETRIC, ORIENTATION, PLANAR, COLOUR_MAP = 258, 259, 262, 274, 284, 320
INK_SET, EXTRA_SAMPLES, SAMPLE_FORMAT, SUBSAMPLING, REFERENCE = 332, 338, 339, 530, 532


def tiff(
    size: tuple[int, int],
    bits: int,
    photometric: int,
    pixels: bytes,
    *,
    samples: int = 1,
    order: str = "<",
    **tags,
) -> bytes:
    """A TIFF of one strip, or one for each plane; `tags` are more, by name: one SHORT or a list."""
    width, height = size
    strips = samples if tags.get("planar") == 2 else 1
    length = len(pixels) // strips
    entries = {
        256: (3, [width]), 257: (3, [height]), BITS: (3, [bits] * samples), COMPRESSION: (3, [1]),
        PHOTOMETRIC: (3, [photometric]), 277: (3, [samples]), 278: (3, [height]), 273: (4, [0] * strips),
        279: (4, [length] * strips),
    }  # fmt: skip
    for name, value in tags.items():
        values = value if isinstance(value, list) else [value]
        entries[globals()[name.upper()]] = (5 if name == "reference" else 3, values)
    packed = {
        tag: struct.pack(order + _CODES[kind] * (len(values) // len(_CODES[kind])), *values)
        for tag, (kind, values) in entries.items()
    }
    begin_of_long = 8 + 2 + 12 * len(entries) + 4
    begin_of_pixels = begin_of_long + sum(len(value) for value in packed.values() if len(value) > 4)
    offsets = [begin_of_pixels + length * strip for strip in range(strips)]
    packed[273] = struct.pack(order + "I" * strips, *offsets)
    long = b"".join(packed[tag] for tag in sorted(entries) if len(packed[tag]) > 4)
    table, place = b"", begin_of_long
    for tag in sorted(entries):
        kind, values = entries[tag]
        value = packed[tag]
        if len(value) > 4:
            value, place = struct.pack(order + "I", place), place + len(value)
        table += struct.pack(order + "HHI", tag, kind, len(values) // len(_CODES[kind])) + value.ljust(
            4, b"\0"
        )
    magic = b"II*\0" if order == "<" else b"MM\0*"
    head = magic + struct.pack(order + "IH", 8, len(entries)) + table + bytes(4)
    return head + long + pixels


def pack_bits(values: list[int], bits: int) -> bytes:
    """Numbers of so many bits each, one after the other, filled up to a whole byte."""
    text = "".join(f"{value:0{bits}b}" for value in values)
    text = text.ljust(-(-len(text) // 8) * 8, "0")
    return int(text, 2).to_bytes(len(text) // 8, "big")
