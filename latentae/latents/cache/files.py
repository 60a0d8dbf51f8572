"""Files that are there whole, or not at all."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class FullDiskError(OSError):
    """There is no room for a file; what was written before is still there."""


def write_aside(path: Path, content: bytes) -> None:
    """Writes a file aside, flushes it to the disk and renames it, so that a killed process leaves no half.

    Raises:
        FullDiskError: no room, or the quota is used up.
        OSError: it cannot be written for another reason.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise FullDiskError(
                f"no space left to write {path} ({len(content) / 2**20:.1f} MiB): what is finished stays; "
                "free some space, and the same command goes on from there"
            ) from error
        raise
    finally:
        aside.unlink(missing_ok=True)


def write_together(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes several files into a folder, which is made if need be; where one finds no room, none changes.

    Args:
        files: name → content, in the order in which they appear.

    Raises:
        FullDiskError: no room, or the quota is used up.
        OSError: one cannot be written for another reason.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    asides = {name: folder / f".{name}.{os.getpid()}" for name in files}
    written = False
    try:
        for name, content in files.items():
            asides[name].write_bytes(content)
        for name, aside in asides.items():
            aside.replace(folder / name)
        written = True
    except OSError as error:
        if error.errno in _NO_ROOM:
            size = sum(map(len, files.values())) / 2**20
            raise FullDiskError(
                f"no space left to write {len(files)} files into {folder} ({size:.1f} MiB): nothing there "
                "has changed; free some space and start again"
            ) from error
        raise
    finally:
        for aside in asides.values():
            aside.unlink(missing_ok=True)
        if is_new and not written and not any(folder.iterdir()):
            folder.rmdir()


def has_keys(path: Path, keys: set[str]) -> bool:
    """Whether a file is a JSON object with these keys: `settings.json` is what many programs call theirs."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and keys <= content.keys()


def remove_unfinished(folder: Path) -> None:
    """Removes what killed processes were about to write."""
    for file in folder.glob(".*.safetensors.*"):
        file.unlink(missing_ok=True)
    for file in folder.glob(".*.json.*"):
        file.unlink(missing_ok=True)
