"""Checkpoints: written aside by all ranks, checked, renamed when whole; read back alike on all ranks."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from latentae import distributed
from latentae.files import FullDiskError, aside_of, remove, swap_in, write_json
from latentae.training.best import PROGRESS, mark_best
from latentae.training.folder import RankError, RunError, RunFolder, step_of
from latentae.training.manifest import find_damage, write_manifest

_FILE_WORDS = re.compile(r"write|file|inline_container|disk", re.IGNORECASE)
_NONE, _ALL_DAMAGED = -1, -2  # what stands for no step when a choice is told to the other ranks


@contextmanager
def needing_disk(path: Path) -> Iterator[None]:
    """Turns a failure to write into one sentence.

    Raises:
        RunError: ``path`` could not be written, such as on a full disk.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        # torch.save reports a full disk as RuntimeError; others are a mistake or a full GPU.
        if isinstance(error, RunError) or (
            isinstance(error, RuntimeError) and not _FILE_WORDS.search(str(error))
        ):
            raise
        free = _free_megabytes(path)
        guess = "no space is left on the device" if free == 0 else "perhaps no space was left on the device"
        raise RunError(
            f"cannot write {path}: {_system_s_words(error) or guess} ({free} MB are free)\n"
            "what was saved before is untouched; make room there and run the same command again to continue"
        ) from error


def _system_s_words(error: Exception) -> str | None:
    """What the operating system calls a failure to write; None where it was not asked."""
    return getattr(error.__cause__ if isinstance(error, FullDiskError) else error, "strerror", None)


def _free_megabytes(path: Path) -> int:
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    return shutil.disk_usage(existing).free >> 20


@contextmanager
def _writing_alike(path: Path) -> Iterator[None]:
    """``needing_disk`` on all ranks together: one that went on alone would wait for the others forever.

    Every rank must enter it, and has to wait for the others to leave it.
    """
    failure: RunError | None = None
    try:
        with needing_disk(path):
            yield
    except RunError as error:
        failure = error
        shutil.rmtree(aside_of(path), ignore_errors=True)
    failed = distributed.all_gather_concat(torch.tensor([int(failure is not None)]))
    if failure is not None:
        raise failure if distributed.is_main() else RankError(str(failure)) from failure
    if failed.any():
        names = ", ".join(str(rank) for rank in failed.nonzero().flatten().tolist())
        raise RunError(
            f"cannot write {path}: process {names} of {distributed.world_size()} could not; its folder must "
            "be one that all nodes share and can write to\nwhat was saved before is untouched; the same "
            "command continues"
        )


def save_checkpoint(
    folder: RunFolder,
    save_state: Callable[[str], Any],
    progress: dict[str, Any],
    keep: int,
    best_metric: str | None = None,
) -> None:
    """Writes a checkpoint and drops old ones; every rank must call it at the end of an optimizer step.

    It is written aside and read back, gets its list of files last of all, and only then its name: a folder
    under that name is whole, whenever the run is killed.

    Args:
        folder: the run's.
        save_state: writes the state of this rank into a folder.
        progress: where the run stands; ``step`` names the checkpoint, ``validation`` holds what was measured
            at that very step, if anything was.
        keep: how many of the newest remain.
        best_metric: the best one by this metric remains, too.

    Raises:
        RunError: it cannot be written, on this or another rank; the older ones stand.
    """
    path = folder.checkpoint(progress["step"])
    aside = aside_of(path)
    main = distributed.is_main()
    if main:
        shutil.rmtree(aside, ignore_errors=True)
    distributed.barrier()
    with _writing_alike(path):
        aside.mkdir(parents=True, exist_ok=True)
        save_state(str(aside))
    with _writing_alike(path):
        if main:
            write_json(aside / PROGRESS, progress)
            write_manifest(aside)
            swap_in(aside, path)
            best = mark_best(folder, best_metric)
            for old in folder.all_checkpoints()[:-keep]:
                if old != best:
                    remove(old)
            folder.remove_damaged(progress["step"])


def choose_checkpoint(folder: RunFolder, resume: str, say: Callable[[str], None]) -> Path | None:
    """The checkpoint to continue from, the same on every rank; None starts at the beginning.

    The first rank reads the files and compares them with their list. With ``auto``, damaged checkpoints are
    named and renamed, and the newest whole one is taken.

    Args:
        folder: the run's.
        resume: ``auto``, ``never`` or the path of a checkpoint.
        say: prints a line, once.

    Raises:
        ValueError: the path is no checkpoint or a damaged one, or none of the run's is whole.
    """
    path = folder.checkpoint_to_resume(resume)
    if resume != "auto":
        damage = None if path is None or not distributed.is_main() else find_damage(path)
        if distributed.broadcast_from_main(torch.tensor(int(damage is not None))):
            raise ValueError(f"resume is {resume}, a damaged checkpoint: {damage}; choose another one")
    else:
        found = _newest_whole(folder, say) if distributed.is_main() else _NONE
        step = int(distributed.broadcast_from_main(torch.tensor(found)))
        if step == _ALL_DAMAGED:
            raise ValueError(
                f"of the checkpoints in {folder.checkpoints} none is whole; remove them to start from the "
                "beginning, or choose another output_dir"
            )
        path = None if step == _NONE else folder.checkpoint(step)
    _check_shared(path)
    return path


def _newest_whole(folder: RunFolder, say: Callable[[str], None]) -> int:
    damaged: list[tuple[Path, str]] = []
    for path in reversed(folder.all_checkpoints()):
        damage = find_damage(path)
        if damage is None:
            break
        damaged.append((path, damage))
    else:
        for path, damage in damaged:
            say(f"{path} is damaged: {damage}")
        return _ALL_DAMAGED if damaged else _NONE
    for other, damage in damaged:
        kept = folder.set_aside(other)
        say(f"{other} is damaged ({damage}): renamed to {kept.name}, continuing from {path.name}")
    return step_of(path)


def _check_shared(path: Path | None) -> None:
    """Raises ValueError on every rank if one of them does not see the checkpoint."""
    seen = distributed.all_gather_concat(torch.tensor([int(path is None or path.is_dir())]))
    if not seen.all():
        ranks = ", ".join(str(rank) for rank in (seen == 0).nonzero().flatten().tolist())
        raise ValueError(
            f"processes {ranks} do not see {path}: output_dir must be in a folder that all nodes share"
        )


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
        ValueError: it does not fit the run's model, or the run's own was written with another global batch,
            which changes the data's order.
    """
    try:
        progress: dict[str, Any] = json.loads((path / PROGRESS).read_text())
        written_with = progress["global_batch"]
        load_state(str(path))
    except (OSError, RuntimeError, KeyError, ValueError, SafetensorError) as error:
        remedy = "it was written by another version of latentae: continue with that one, or start anew"
        if not own:
            remedy = "it belongs to another run: its model must be the same as this config's"
        raise ValueError(f"the checkpoint {path} cannot be read: {error}\n{remedy}") from error
    if own and written_with != global_batch:
        raise ValueError(
            f"batch_size x processes is {global_batch}, but was {written_with} when this run was saved; "
            f"choose a batch_size that makes them equal, or branch off: resume={path} output_dir=NEW_FOLDER"
        )
    return progress
