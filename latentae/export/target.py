"""Where an export goes: never over something else, and never there half."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# What a model folder consists of, by how names begin: only such a folder may be replaced.
_MODEL_FILES = ("config.json", "diffusion_pytorch_model", "README.md", ".gitattributes")


def check_target(path: Path, *, folder: bool, overwrite: bool) -> None:
    """Checks that an export may be put at ``path``.

    Args:
        path: need not exist.
        folder: whether a folder is going to be written, and not a ``.safetensors`` file.
        overwrite: whether an earlier export may be replaced.

    Raises:
        ValueError: something is there that is not to be overwritten, or could not be an earlier export; a
            name that does not fit what is written.
    """
    is_file_name = path.suffix == ".safetensors"
    if folder and is_file_name:
        raise ValueError(f"{path} names a file, but this format is a folder: leave the .safetensors out")
    if not folder and not is_file_name:
        raise ValueError(f"{path} is no name for this format, which is one file: end it in .safetensors")
    if not os.path.lexists(path):
        return
    if path.is_dir() != folder:
        raise ValueError(f"{path} is a {'file' if folder else 'folder'}: choose another path")
    if folder and not any(path.iterdir()):
        return
    if not overwrite:
        raise ValueError(f"{path} exists: choose another path, or say overwrite")
    if folder:
        others = sorted(item.name for item in path.iterdir() if not item.name.startswith(_MODEL_FILES))
        if others:
            raise ValueError(
                f"{path} holds more than a model ({others[0]}), which would be lost: choose another"
            )


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


def list_files(path: Path) -> tuple[str, ...]:
    """Names of a file, or of all files in a folder, sorted."""
    if path.is_file():
        return (path.name,)
    return tuple(sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()))
