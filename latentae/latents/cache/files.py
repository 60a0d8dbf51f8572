"""Files that are there whole, or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path


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
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FullDiskError(
                f"no space left to write {path} ({len(content) / 2**20:.1f} MiB): what is finished stays; "
                "free some space, and the same command goes on from there"
            ) from error
        raise
    finally:
        aside.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Removes what killed processes were about to write."""
    for file in folder.glob(".*.safetensors.*"):
        file.unlink(missing_ok=True)
    for file in folder.glob(".*.json.*"):
        file.unlink(missing_ok=True)
