"""Suffixes of files: those of pictures, and how many files of each there are, for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from PIL import Image

_OTHER_FORMATS_SUFFIXES = (".pcd",)  # a point cloud far more often than a Photo CD
_OTHER_JPEG_SUFFIXES = (".jif", ".jfi", ".pjpeg", ".pjp", ".mpo")  # those that Pillow does not list
_MOST_SHOWN = 8


def picture_suffixes(formats: Collection[str]) -> tuple[str, ...]:
    """All suffixes, in lower case, of files in these of Pillow's formats, but those of other formats, too."""
    known = sorted(
        suffix
        for suffix, name in Image.registered_extensions().items()
        if name in formats and suffix not in _OTHER_FORMATS_SUFFIXES
    )
    return (*known, *(_OTHER_JPEG_SUFFIXES if "JPEG" in formats else ()))


def suffix_of(name: str) -> str:
    """The suffix of a file in lower case, with `.tar` before that of a compressed tar file."""
    # String methods, since a folder may hold millions of files and PurePosixPath takes microseconds.
    stem, _, ending = name.lower().rpartition("/")[2].rpartition(".")
    if not stem or not ending:
        return "no suffix"
    return f".tar.{ending}" if stem.endswith(".tar") else f".{ending}"


def stem_of(name: str) -> str:
    """The name of a file without its folders and its suffix."""
    base = name.rpartition("/")[2]
    stem = base.rpartition(".")[0]
    return stem or base


def count_by_suffix(counts: Counter[str]) -> str:
    """For people: `3 files (2 .jpg, 1 .gif)`."""
    shown = [f"{count} {suffix}" for suffix, count in counts.most_common(_MOST_SHOWN)]
    rest = counts.total() - sum(count for _, count in counts.most_common(_MOST_SHOWN))
    if rest:
        shown.append(f"{rest} others")
    return f"{counts.total()} file{'s' * (counts.total() != 1)} ({', '.join(shown)})"
