"""Suffixes of files: those of pictures, and how many files of each there are, for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import PurePosixPath

from PIL import Image

_OTHER_JPEG_SUFFIXES = (".jif", ".jfi", ".pjpeg", ".pjp", ".mpo")  # those that Pillow does not list
_MOST_SHOWN = 8


def picture_suffixes(formats: Collection[str]) -> tuple[str, ...]:
    """All suffixes, in lower case, of files in these of Pillow's formats."""
    known = sorted(suffix for suffix, name in Image.registered_extensions().items() if name in formats)
    return (*known, *(_OTHER_JPEG_SUFFIXES if "JPEG" in formats else ()))


def suffix_of(name: str) -> str:
    """The suffix of a file in lower case, with `.tar` before that of a compressed tar file."""
    path = PurePosixPath(name.lower())
    if not path.suffix:
        return "no suffix"
    return ".tar" + path.suffix if path.stem.endswith(".tar") else path.suffix


def count_by_suffix(counts: Counter[str]) -> str:
    """For people: `3 files (2 .jpg, 1 .gif)`."""
    shown = [f"{count} {suffix}" for suffix, count in counts.most_common(_MOST_SHOWN)]
    rest = counts.total() - sum(count for _, count in counts.most_common(_MOST_SHOWN))
    if rest:
        shown.append(f"{rest} others")
    return f"{counts.total()} file{'s' * (counts.total() != 1)} ({', '.join(shown)})"
