"""Names that stand for several files: `shards/{000..099}.tar`, `data/*.parquet`."""

from __future__ import annotations

import glob
import itertools
import re
from pathlib import Path

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST_FILES = 1_000_000


def is_pattern(name: str) -> bool:
    """Whether a name is meant as a pattern, and not as that of a file or folder."""
    return bool(_BRACES.search(name) or glob.has_magic(name)) and not is_there(Path(name).expanduser())


def is_there(path: Path) -> bool:
    """Whether something is at a path; nothing is where its name is too long for the file system."""
    try:
        return path.exists()
    except OSError:
        return False


def expand_pattern(pattern: str) -> list[Path]:
    """The files that a pattern stands for.

    Args:
        pattern: with `{000..099}` (numbers, as wide as the first is written), `{a,b}`, and a shell's `*`,
            `?`, `[...]` and `**`.

    Returns:
        the files in the order of the braces, and what `*` stands for sorted.

    Raises:
        ValueError: no file fits, or one that braces name is not there.
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
    missing = [path for path in files if not (is_there(path) and path.is_file())]
    if missing:
        raise ValueError(
            f"name {pattern!r} stands for {len(files)} files, of which {len(missing)} are not there, such as "
            f"{missing[0]} (the working folder is {Path.cwd()})"
        )
    return list(dict.fromkeys(files))


def expand_braces(pattern: str) -> list[str]:
    """What a pattern with braces stands for; itself where it has none. Raises ValueError for too many."""
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
