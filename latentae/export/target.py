"""Where an export goes: never over something else, and never there half."""

from __future__ import annotations

import os
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
            _replace(target, aside, Path(work) / "replaced")
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


def _replace(target: Path, new: Path, old: Path) -> None:
    """Puts ``new`` at ``target``; a folder that stands there goes to ``old``."""
    if not target.is_dir():
        new.replace(target)
        return
    target.rename(old)
    try:
        new.rename(target)
    except BaseException:  # an interrupt, too, since ``old`` is going to be deleted
        old.rename(target)
        raise


def list_files(path: Path) -> tuple[str, ...]:
    """Names of a file, or of all files in a folder, sorted."""
    if path.is_file():
        return (path.name,)
    return tuple(sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()))
