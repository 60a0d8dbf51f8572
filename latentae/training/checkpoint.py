"""Checkpoints: written aside by all ranks, renamed when whole, read back."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from latentae import distributed
from latentae.training.folder import RunError, RunFolder, aside_of, step_of, swap_in, write_json

_PROGRESS = "progress.json"
_FILE_WORDS = re.compile(r"write|file|inline_container|disk", re.IGNORECASE)


@contextmanager
def needing_disk(path: Path) -> Iterator[None]:
    """Turns a failure to write into one sentence.

    Raises:
        RunError: ``path`` could not be written, such as on a full disk.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        shutil.rmtree(aside_of(path), ignore_errors=True)
        # torch.save reports a full disk as RuntimeError; others are a mistake or a full GPU.
        if isinstance(error, RuntimeError) and not _FILE_WORDS.search(str(error)):
            raise
        reason = getattr(error, "strerror", None) or "perhaps no space is left on the device"
        raise RunError(
            f"cannot write {path}: {reason} ({_free_megabytes(path)} MB are free)\n"
            "what was saved before is untouched; make room there and run the same command again to continue"
        ) from error


def _free_megabytes(path: Path) -> int:
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    return shutil.disk_usage(existing).free >> 20


def save_checkpoint(
    folder: RunFolder, save_state: Callable[[str], Any], progress: dict[str, Any], keep: int
) -> None:
    """Writes a checkpoint and drops old ones; every rank must call it at the end of an optimizer step.

    Args:
        folder: the run's.
        save_state: writes the state of this rank into a folder.
        progress: where the run stands; ``step`` names the checkpoint.
        keep: how many checkpoints remain.

    Raises:
        RunError: it cannot be written; the older ones stand.
    """
    path = folder.checkpoint(progress["step"])
    aside = aside_of(path)
    if distributed.is_main():
        shutil.rmtree(aside, ignore_errors=True)
    distributed.barrier()
    with needing_disk(path):
        aside.mkdir(parents=True, exist_ok=True)
        save_state(str(aside))
        if distributed.is_main():
            write_json(aside / _PROGRESS, progress)
    distributed.barrier()
    if distributed.is_main():
        swap_in(aside, path)
        for old in folder.all_checkpoints()[:-keep]:
            shutil.rmtree(old)


def load_checkpoint(
    path: Path, load_state: Callable[[str], Any], global_batch: int, *, own: bool = True
) -> dict[str, Any]:
    """Reads a checkpoint back and returns its progress.

    Args:
        path: the checkpoint's folder.
        load_state: reads the state of this rank from a folder.
        global_batch: images of all ranks in a micro-batch, now.
        own: whether the checkpoint belongs to the run that is continued.

    Raises:
        ValueError: it is damaged, or was written with another global batch, which changes the data's order.
    """
    try:
        progress: dict[str, Any] = json.loads((path / _PROGRESS).read_text())
        written_with = progress["global_batch"]
        load_state(str(path))
    except (OSError, RuntimeError, KeyError, ValueError, SafetensorError) as error:
        before = [
            other.name
            for other in RunFolder(path.parent.parent).all_checkpoints()
            if step_of(other) < step_of(path)
        ]
        remedy = (
            f"remove it to continue from {before[-1]}" if before else "remove it to start from the beginning"
        )
        if not own:
            remedy = "it belongs to another run: its model must be the same as this config's"
        raise ValueError(f"the checkpoint {path} cannot be read: {error}\n{remedy}") from error
    if written_with != global_batch:
        raise ValueError(
            f"batch_size x processes is {global_batch}, but was {written_with} when this run was saved; "
            "choose a batch_size that makes them equal"
        )
    return progress
