"""Atomic checkpoints: all ranks write to a temporary folder, which is verified and then renamed."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from latentae import distributed
from latentae.files import (
    FullDiskError,
    aside_of,
    file_sha256,
    flush,
    list_files,
    remove,
    swap_in,
    write_json,
)
from latentae.training.run_folder import RankError, RunError, RunFolder, step_of

MANIFEST = "manifest.json"
PROGRESS = "progress.json"
_LOWER_IS_BETTER = {"validation_psnr": False, "validation_ssim": False, "validation_lpips": True}
_FILE_WORDS = re.compile(r"write|file|inline_container|disk", re.IGNORECASE)
_NONE, _ALL_DAMAGED = -1, -2  # sent to the other ranks in place of a step


@contextmanager
def needing_disk(path: Path) -> Iterator[None]:
    """Turns a failure to write, such as on a full disk, into a RunError of one sentence."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        # torch.save reports a full disk as RuntimeError; others are a mistake or a full GPU.
        if isinstance(error, RunError) or (
            isinstance(error, RuntimeError) and not _FILE_WORDS.search(str(error))
        ):
            raise
        existing = next(parent for parent in path.absolute().parents if parent.exists())
        free = shutil.disk_usage(existing).free >> 20
        cause = error.__cause__ if isinstance(error, FullDiskError) else error
        guess = "no space is left on the device" if free == 0 else "perhaps no space was left on the device"
        raise RunError(
            f"cannot write {path}: {getattr(cause, 'strerror', None) or guess} ({free} MB are free)\n"
            "what was saved before is untouched; make room there and run the same command again to continue"
        ) from error


@contextmanager
def _writing_alike(path: Path) -> Iterator[None]:
    """``needing_disk`` on all ranks together: one that continued alone would wait for the others forever.

    Every rank must enter it. All leave it together.
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
        raise RunError(
            f"cannot write {path}: process {_ranks_where(failed)} of {distributed.world_size()} could not; "
            "its folder must be one that all nodes share and can write to\nwhat was saved before is "
            "untouched; the same command continues"
        )


def _ranks_where(flags: torch.Tensor) -> str:
    return ", ".join(str(rank) for rank in flags.nonzero().flatten().tolist())


def save_checkpoint(
    folder: RunFolder,
    save_state: Callable[[str], Any],
    progress: dict[str, Any],
    keep: int,
    best_metric: str | None = None,
) -> None:
    """Writes a checkpoint and drops old ones; every rank must call it at the end of an optimizer step.

    It is written to a temporary folder and read back, then gets its list of files, then its name. So a folder
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
    """Returns the checkpoint to continue from, the same on every rank; None: start at the beginning.

    The first rank reads the files and compares them with their list. With ``auto`` it names and renames
    damaged checkpoints, and takes the newest whole one.

    Args:
        folder: the run's.
        resume: ``auto``, ``never`` or the path of a checkpoint.
        say: prints a line, once.

    Raises:
        ValueError: the path is no checkpoint or a damaged one, or all of the run's are damaged.
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
                f"all checkpoints in {folder.checkpoints} are damaged; remove them to start from the "
                "beginning, or choose another output_dir"
            )
        path = None if step == _NONE else folder.checkpoint(step)
    seen = distributed.all_gather_concat(torch.tensor([int(path is None or path.is_dir())]))
    if not seen.all():
        raise ValueError(
            f"processes {_ranks_where(seen == 0)} do not see {path}: output_dir must be in a folder that all "
            "nodes share"
        )
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


# The list of a checkpoint's files


def write_manifest(folder: Path) -> None:
    """Flushes all files of ``folder``, reads them back, and lists their sizes and hashes in manifest.json.

    Raises:
        OSError: a file cannot be written, or the disk returns something other than what was written.
    """
    files: dict[str, dict[str, Any]] = {}
    for name in list_files(folder):
        path = folder / name
        written = file_sha256(path)
        flush(path)
        _drop_cached(path)
        if file_sha256(path) != written:
            raise OSError(errno.EIO, f"the disk does not give back what was written to {name}")
        files[name] = {"bytes": path.stat().st_size, "sha256": written}
    write_json(folder / MANIFEST, {"files": files})


def find_damage(folder: Path) -> str | None:
    """Returns how the files of ``folder`` differ from its manifest, in a clause; None: they do not."""
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"].items()
        for name, entry in files:
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != entry["bytes"]:
                return f"{name} has {path.stat().st_size} bytes of {entry['bytes']}"
            if file_sha256(path) != entry["sha256"]:
                return f"{name} has changed since it was written"
    except OSError as error:
        return f"{Path(error.filename or folder).name} cannot be read: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is no list of files"
    return None


def _drop_cached(path: Path) -> None:
    """Asks the system to drop its copy in memory, so that the next reader reads from the disk itself."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# The best checkpoint


@dataclass(frozen=True)
class BestCheckpoint:
    """The contents of ``checkpoints/best.json``.

    Attributes:
        step: of the checkpoint.
        metric: such as ``validation_psnr``.
        value: measured at that very step.
    """

    step: int
    metric: str
    value: float


def find_best(folder: RunFolder, metric: str) -> BestCheckpoint | None:
    """Returns the best of the checkpoints in ``folder``, the earlier one if two are equal.

    Each checkpoint says in its own progress.json what was measured at its step, so nothing needs to be
    remembered between runs. A checkpoint without a finite measurement is no candidate.
    """
    measured = [(step_of(path), _measured(path).get(metric, math.nan)) for path in folder.all_checkpoints()]
    finite = [(step, value) for step, value in measured if math.isfinite(value)]
    if not finite:
        return None
    sign = 1 if _LOWER_IS_BETTER[metric] else -1
    step, value = min(finite, key=lambda pair: (sign * pair[1], pair[0]))
    return BestCheckpoint(step, metric, value)


def mark_best(folder: RunFolder, metric: str | None) -> Path | None:
    """Writes ``checkpoints/best.json``, or removes it if there is no best; returns the best one's path."""
    best = None if metric is None else find_best(folder, metric)
    file = folder.checkpoints / "best.json"
    if best is None:
        file.unlink(missing_ok=True)
        return None
    write_json(file, asdict(best))
    return folder.checkpoint(best.step)


def _measured(checkpoint: Path) -> dict[str, Any]:
    try:
        validation: dict[str, Any] = json.loads((checkpoint / PROGRESS).read_text())["validation"]
    except (OSError, ValueError, KeyError):
        return {}  # written without validation, or damaged: no candidate
    return validation
