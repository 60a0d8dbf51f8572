"""The list of a checkpoint's files, with sizes and hashes: what tells a whole one from a damaged one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from latentae.files import flush, list_files, write_json

MANIFEST = "manifest.json"


def write_manifest(folder: Path) -> None:
    """Puts all files of ``folder`` on the disk, reads them back, and writes ``manifest.json``, last of all.

    Raises:
        OSError: a file cannot be written, or the disk gives back something else than was written.
    """
    files: dict[str, dict[str, Any]] = {}
    for name in list_files(folder):
        path = folder / name
        written = _digest(path)
        flush(path)
        _forget_cached(path)
        if _digest(path) != written:
            raise OSError(errno.EIO, f"the disk does not give back what was written to {name}")
        files[name] = {"bytes": path.stat().st_size, "sha256": written}
    write_json(folder / MANIFEST, {"files": files})


def find_damage(folder: Path) -> str | None:
    """What distinguishes the files of ``folder`` from those listed when it was written; None: nothing."""
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"].items()
        for name, entry in files:
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != entry["bytes"]:
                return f"{name} has {path.stat().st_size} bytes of {entry['bytes']}"
            if _digest(path) != entry["sha256"]:
                return f"{name} has changed since it was written"
    except OSError as error:
        return f"{Path(error.filename or folder).name} cannot be read: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is no list of files"
    return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _forget_cached(path: Path) -> None:
    """Asks the system to drop its copy in memory, so that the next reader hears from the disk itself."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
