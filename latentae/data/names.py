"""Names of files: made printable, their suffixes, lists of them for people, and patterns of several."""

from __future__ import annotations

import difflib
import glob
import itertools
import os
import re
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from PIL import Image

from latentae.files import exists

_LONGEST = 300


def printable(text: str, longest: int | None = None) -> str:
    r"""Returns `text` as one line of valid UTF-8.

    Line breaks, other control characters and bytes that are not UTF-8 (surrogates in Python's file names) are
    escaped, like `\n` and `\udcff`. The middle of a text longer than `longest` characters is left out.
    """
    if not text.isprintable():  # surrogates, control characters and some spaces are not
        text = "".join(c if c.isprintable() or c == "\u3000" else _escape(c) for c in text)
    if longest is not None and len(text) > longest:
        half = (longest - 1) // 2
        text = f"{text[:half]}…{text[-half:]}"
    return text


def printable_name(name: str) -> str:
    """Does `printable`, and leaves out the middle of names of more than 300 characters."""
    return printable(name, _LONGEST)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


_OTHER_FORMATS_SUFFIXES = (".pcd",)  # far more often a point cloud than a Photo CD
_OTHER_JPEG_SUFFIXES = (".jif", ".jfi", ".pjpeg", ".pjp", ".mpo")  # Pillow does not list these
_MOST_SHOWN = 8


def picture_suffixes(formats: Collection[str]) -> tuple[str, ...]:
    """Returns the suffixes, in lower case, of files in these formats of Pillow."""
    known = sorted(
        suffix
        for suffix, name in Image.registered_extensions().items()
        if name in formats and suffix not in _OTHER_FORMATS_SUFFIXES
    )
    return (*known, *(_OTHER_JPEG_SUFFIXES if "JPEG" in formats else ()))


def suffix_of(name: str) -> str:
    """Returns the suffix of a file in lower case, with `.tar` before that of a compressed tar file."""
    # String methods are faster than PurePosixPath, and a folder may hold millions of files.
    stem, _, ending = name.lower().rpartition("/")[2].rpartition(".")
    if not stem or not ending:
        return "no suffix"
    return f".tar.{ending}" if stem.endswith(".tar") else f".{ending}"


def stem_of(name: str) -> str:
    """Returns the name of a file without its folders and its suffix."""
    base = name.rpartition("/")[2]
    stem = base.rpartition(".")[0]
    return stem or base


def count_by_suffix(counts: Counter[str]) -> str:
    """Says how many files of each suffix there are: `3 files (2 .jpg, 1 .gif)`."""
    shown = [f"{count} {suffix}" for suffix, count in counts.most_common(_MOST_SHOWN)]
    rest = counts.total() - sum(count for _, count in counts.most_common(_MOST_SHOWN))
    if rest:
        shown.append(f"{rest} others")
    return f"{counts.total()} file{'s' * (counts.total() != 1)} ({', '.join(shown)})"


def describe_files(files: Sequence[Path]) -> str:
    """Names the only file, or the number of files, the first and the last."""
    if len(files) == 1:
        return str(files[0])
    return f"{len(files)} files, {files[0]} to {files[-1].name}"


def shard_labels(paths: Sequence[Path]) -> list[str]:
    """Returns names that are the same on every machine: paths relative to the common folder of all files."""
    parents = [os.path.abspath(path.parent) for path in paths]  # noqa: PTH100 (resolve() would follow links)
    common = os.path.commonpath(parents) if parents else ""
    return [
        Path(os.path.relpath(parent, common), path.name).as_posix()
        for parent, path in zip(parents, paths, strict=True)
    ]


_MOST_COMPARED = 10_000  # names of a folder, which may hold millions


def similar_paths(path: Path) -> list[Path]:
    """Returns up to three existing paths that a misspelt one may stand for, the most similar first.

    They differ from it in its first part that does not exist, and end there.
    """
    must_be_folder = not exists(path.parent)
    while not exists(path.parent):
        path = path.parent
    try:
        with os.scandir(path.parent) as entries:
            compared = itertools.islice(entries, _MOST_COMPARED)
            names = [entry.name for entry in compared if entry.is_dir() or not must_be_folder]
    except OSError:
        return []
    return [path.with_name(name) for name in difflib.get_close_matches(path.name, names)]


_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST_FILES = 1_000_000


def is_pattern(name: str) -> bool:
    """Whether a name is a pattern, and not the name of an existing file or folder."""
    return bool(_BRACES.search(name) or glob.has_magic(name)) and not exists(Path(name).expanduser())


def expand_pattern(pattern: str) -> list[Path]:
    """Returns the files that a pattern stands for.

    Args:
        pattern: with `{000..099}` (numbers of as many digits as the first has), `{a,b}`, and the shell's `*`,
            `?`, `[...]` and `**`.

    Returns:
        the files in the order of the braces; files that match a `*` are sorted.

    Raises:
        ValueError: no file matches, or a file that braces name does not exist.
    """
    files: list[Path] = []
    for name in expand_braces(pattern):
        path = str(Path(name).expanduser())
        if glob.has_magic(path):
            found = sorted(glob.glob(path, recursive=True))  # noqa: PTH207 (Path.glob takes no absolute ones)
        else:
            found = [path]
        if not found:
            raise ValueError(
                f"name {pattern!r}: no file is called {name} (the working folder is {Path.cwd()})"
            )
        files += [Path(file) for file in found]
    missing = [path for path in files if not (exists(path) and path.is_file())]
    if missing:
        raise ValueError(
            f"name {pattern!r} stands for {len(files)} files, of which {len(missing)} do not exist, such as "
            f"{missing[0]} (the working folder is {Path.cwd()})"
        )
    return list(dict.fromkeys(files))


def expand_braces(pattern: str) -> list[str]:
    """Returns the names that braces stand for, or the pattern itself. Raises ValueError for too many."""
    parts = _BRACES.split(pattern)  # text, braces, text, braces, ..., text
    choices = [
        [part] if place % 2 == 0 else _brace_choices(pattern, part) for place, part in enumerate(parts)
    ]
    return ["".join(combination) for combination in itertools.product(*choices)]


def _brace_choices(pattern: str, content: str) -> list[str]:
    between = _RANGE.fullmatch(content)
    if between is None:
        return content.split(",")
    first, last = between.groups()
    count = int(last) - int(first) + 1
    if not 0 < count <= _MOST_FILES:
        raise ValueError(
            f"name {pattern!r}: {{{content}}} must count upwards, over {_MOST_FILES} numbers at most"
        )
    return [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
