"""Files and folders that appear whole or not at all, also after a kill or a loss of power."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class FullDiskError(OSError):
    """There is no room for a file; what was written before is still there."""


def write_aside(path: Path, content: bytes) -> None:
    """Writes a file under another name, flushes it to the disk and renames it.

    Raises:
        FullDiskError: there is no room, or the quota is used up.
        OSError: the file cannot be written for another reason.
    """
    with open_aside(path, len(content)) as file:
        file.write(content)


@contextmanager
def open_aside(path: Path, size: int) -> Iterator[BinaryIO]:
    """Opens a file to be written piece by piece, which replaces ``path`` at the end as in ``write_aside``.

    If the block raises, ``path`` is as it was.

    Args:
        path: of the finished file.
        size: in bytes, for the message of a full disk.

    Raises:
        FullDiskError: there is no room, or the quota is used up.
        OSError: the file cannot be written for another reason.
    """
    aside = _aside_of_process(path)
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        flush_names(path.parent)
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise FullDiskError(
                f"no space left to write {path} ({size / 2**20:.1f} MiB): what is finished stays; "
                "free some space, and the same command goes on from there"
            ) from error
        raise
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes text as UTF-8 like ``write_aside``; bytes of file names that are no UTF-8 stay as they are."""
    write_aside(path, text.encode(errors="surrogateescape"))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes an indented JSON object as ``write_aside`` does."""
    write_aside(path, (json.dumps(value, indent=2) + "\n").encode())


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
    asides = {name: _aside_of_process(folder / name) for name in files}
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


def check_output_folder(folder: Path, kind: str, is_ours: bool) -> None:
    """Checks that files may be written to a folder, which must be new, empty or ours; nothing is written.

    Args:
        folder: the folder.
        kind: what is to be written there, such as ``a report``.
        is_ours: whether the folder holds such files already.

    Raises:
        ValueError: it may not; the message says why and what to do.
    """
    if folder.is_dir() and any(folder.iterdir()) and not is_ours:
        raise ValueError(f"{folder} holds other files than {kind}: choose a new or an empty folder for --out")
    place = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not place.is_dir():
        raise ValueError(f"{folder} cannot be a folder: {place} is a file")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(f"{folder} cannot be written: there is no permission to write in {place}")


def remove_unfinished(folder: Path) -> None:
    """Removes what killed processes were about to write; also under the names of earlier versions."""
    for pattern in (".*.safetensors.*", ".*.json.*"):
        for file in folder.glob(pattern):
            file.unlink(missing_ok=True)


def aside_of(path: Path) -> Path:
    """Returns where a file or folder is written before it is renamed to ``path``."""
    return path.with_name(f".{path.name}.tmp")


def _aside_of_process(path: Path) -> Path:
    """Returns the same of a file that two processes may write at once."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def remove(path: Path) -> None:
    """Removes a file or a folder if it is there; a folder never stays half under its own name."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    aside = aside_of(path)
    if path.suffix != ".tmp":
        shutil.rmtree(aside, ignore_errors=True)
        path = path.rename(aside)
    shutil.rmtree(path, ignore_errors=True)  # what a busy file keeps back is for the next start


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """A path beside ``target`` to write to; what is there at the end takes the target's place.

    If the block raises, nothing remains of it, nor of folders that were made for it, and what stood at
    ``target`` still does.
    """
    missing = [folder for folder in (target.parent, *target.parent.parents) if not folder.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        # Beside it, since only within one file system is a rename one act.
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as work:
            aside = Path(work) / target.name
            yield aside
            make_readable(aside)
            flush(aside)
            swap_in(aside, target)
    except BaseException:
        for folder in missing:
            with suppress(OSError):  # somebody else has put something there
                folder.rmdir()
        raise


def make_readable(path: Path) -> None:
    """Gives files the permissions of any new file; safetensors would keep its own from all other users."""
    plain = path.with_name(f".{path.name}.plain")
    plain.touch()
    for name in list_files(path):
        (path / name if path.is_dir() else path).chmod(plain.stat().st_mode)
    plain.unlink()


def swap_in(new: Path, target: Path) -> None:
    """Renames what is finished to its place; a folder that stands there is removed only after the swap.

    If the new one cannot take the place, the old one keeps it; after a kill in between, ``mend_swap`` brings
    it back.
    """
    if not target.is_dir():
        new.replace(target)
    else:
        old = _old_of(target)
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        try:
            new.rename(target)
        except BaseException:  # an interrupt, too
            old.rename(target)
            raise
        shutil.rmtree(old)
    flush_names(target.parent)


def mend_swap(target: Path) -> None:
    """Finishes, or takes back, a ``swap_in`` during which the process was killed."""
    old = _old_of(target)
    if not old.exists():
        return
    if target.exists():
        shutil.rmtree(old)
    else:
        old.rename(target)


def _old_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def flush(path: Path) -> None:
    """Waits until a file, or all files in a folder, are on the disk and would survive a loss of power."""
    for name in list_files(path):
        with (path / name if path.is_dir() else path).open("rb") as file:
            os.fsync(file.fileno())
    for folder in (path, *path.rglob("*")):
        if folder.is_dir():
            flush_names(folder)


def flush_names(folder: Path) -> None:
    """Waits until what was created, renamed and removed in a folder is on the disk.

    Where the system opens no folders, as on Windows, that is left to it.
    """
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cache_folder() -> Path:
    """Returns latentae's own cache: ``$LATENTAE_CACHE``, or ``latentae`` in the user's folder of caches."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("LATENTAE_CACHE") or f"{base}/latentae").expanduser()


def exists(path: Path) -> bool:
    """Whether a path exists; False if its name is too long for the file system."""
    try:
        return path.exists()
    except OSError:
        return False


def list_files(path: Path) -> tuple[str, ...]:
    """Names of a file, or of all files in a folder, sorted."""
    if path.is_file():
        return (path.name,)
    return tuple(sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()))


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def first_line(error: BaseException) -> str:
    """Returns the first line of what an error says, or its type if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
