"""The folder of a run: its paths, and whether a run may be started or continued in it."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentae.config import (
    DATA_SPELLING_KEYS,
    ConfigError,
    RunConfig,
    changed_keys,
    dump_config,
    read_config,
    refused_changes,
    refused_in_branch,
)
from latentae.files import exists, mend_swap, remove, write_json, write_text

CONFIG = "config.yaml"
_STEP_NAME = re.compile(r"step_(\d+)")
_DAMAGED_NAME = re.compile(r"step_(\d+)\.damaged")


class RunError(RuntimeError):
    """A run cannot continue; the message says why, what is safe and what to do."""


class RankError(RunError):
    """A RunError that only one rank knows of and so has to print: the others merely miss that rank."""


class RunFolder:
    """Paths below ``output_dir``; the names are part of the interface.

    Args:
        root: ``output_dir``.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / CONFIG
        self.metrics = root / "metrics.jsonl"
        self.summary = root / "summary.json"
        self.samples = root / "samples"
        self.checkpoints = root / "checkpoints"
        self.held_out = root / "held_out.json"
        self.shards = root / "shards"
        self.data = root / "data.json"
        self.model = root / "model"

    def sample(self, step: int) -> Path:
        return self.samples / f"step_{step:06d}.png"

    def whole(self, step: int) -> Path:
        return self.samples / f"whole_{step:06d}.png"

    def codes(self, step: int) -> Path:
        return self.samples / f"codes_{step:06d}.png"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step_{step:06d}"

    def all_checkpoints(self) -> list[Path]:
        """Returns the finished checkpoints, oldest first."""
        if not self.checkpoints.is_dir():
            return []
        found = [path for path in self.checkpoints.iterdir() if _STEP_NAME.fullmatch(path.name)]
        return sorted(found, key=step_of)

    def check(self, config: RunConfig) -> None:
        """Raises ConfigError if ``config`` may not be run here, before anything is written."""
        self._check_name()
        if self.root.exists() and not self.root.is_dir():
            raise ConfigError(f"output_dir is {self.root}, which is a file; choose another one")
        if self.config.exists():
            self._check_own(config)
        else:
            # A run that was killed while it wrote its config leaves half of it under another name.
            cut_short = set(self.root.glob(f".{self.config.name}*.tmp"))
            if self.root.is_dir() and set(self.root.iterdir()) - cut_short:
                raise ConfigError(
                    f"output_dir is {self.root}, which holds files but no run (no {self.config.name}); "
                    "choose an empty or new folder"
                )
        checkpoint = self.checkpoint_to_resume(self.resume_of(config))
        if checkpoint is not None and not self.owns(checkpoint):
            _check_branch(checkpoint, config)

    def _check_name(self) -> None:
        """Raises ConfigError for a path that the file system cannot have."""
        path = self.root.absolute()
        try:
            existing = next(part for part in (path, *path.parents) if part.exists())
            if not existing.is_dir() and existing != path:
                raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            longest = os.pathconf(existing, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
            for part in path.relative_to(existing).parts:
                if len(os.fsencode(part)) > longest:
                    raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        except OSError as error:
            shown = str(self.root) if len(str(self.root)) <= 100 else f"{str(self.root)[:100]}..."
            raise ConfigError(
                f"output_dir is {shown}, which cannot be a folder here ({error.strerror}); choose another one"
            ) from error

    def _check_own(self, config: RunConfig) -> None:
        """Raises ConfigError if the run in this folder cannot be continued with ``config``."""
        if config.resume == "never":
            raise ConfigError(
                f"output_dir is {self.root}, which already holds a run, and resume=never would overwrite it; "
                "choose another output_dir, or resume=auto to continue"
            )
        # A run without a checkpoint has learned nothing yet, so it may start again with other settings.
        if not (self.all_checkpoints() or self.model.exists()):
            return
        before = read_config(self.config)
        # If the run has recorded which images it read, they are compared once the data are open.
        same_data = self.data.is_file() or _same_path(before.data.name, config.data.name)
        allowed = DATA_SPELLING_KEYS if self.data.is_file() else frozenset({"data.name"} if same_data else ())
        changes = refused_changes(before, config, allowed)
        if changes:
            lines = "\n  ".join(changes)
            raise ConfigError(
                f"output_dir is {self.root}, which holds a run with other settings:\n  {lines}\n"
                f"go back to that run's settings to continue it (--config {self.config}), "
                f"or {self.how_to_branch(config)}"
            )

    def other_data(self, config: RunConfig, difference: str) -> str | None:
        """Returns why a run cannot continue with data that differ; None if the config names the same data."""
        changes = changed_keys(read_config(self.config), config)
        lines = [f"{key}: {old} → {new}" for key, (old, new) in changes.items() if key in DATA_SPELLING_KEYS]
        if not lines:
            return None
        shown = "\n  ".join(lines)
        return (
            f"output_dir is {self.root}, which holds a run with other data ({difference}):\n  {shown}\n"
            f"go back to that run's data to continue it, or {self.how_to_branch(config)}"
        )

    def how_to_branch(self, config: RunConfig) -> str:
        """Returns a clause: how to continue from this run with ``config`` in another folder."""
        checkpoints = self.all_checkpoints()
        if not checkpoints or refused_in_branch(read_config(self.config), config):
            return f"start a new run from its weights: model.pretrained={self.root} output_dir=NEW_FOLDER"
        return f"branch off with these: resume={checkpoints[-1]} output_dir=NEW_FOLDER"

    def resume_of(self, config: RunConfig) -> str:
        """Returns ``config.resume``, or ``auto`` if the run of this folder has already branched off there."""
        if config.resume in ("auto", "never") or not self.all_checkpoints() or not self.config.is_file():
            return config.resume
        began_there = read_config(self.config).resume == config.resume
        return "auto" if began_there and not self.owns(Path(config.resume)) else config.resume

    def recorded_precision(self) -> str | None:
        """Returns the `mixed_precision` of the run in this folder; None if it has learned nothing yet."""
        if not (self.config.is_file() and (self.all_checkpoints() or self.model.exists())):
            return None
        return read_config(self.config).mixed_precision

    def owns(self, checkpoint: Path) -> bool:
        """Whether a checkpoint is one of this run's own."""
        return checkpoint.parent.resolve() == self.checkpoints.resolve()

    def create(self, config: RunConfig, data: dict[str, Any] | None = None) -> None:
        """Makes the folders and writes the resolved config and the record of the data, if there is one."""
        try:
            # The config first: it marks the folder as a run's, even if the run is killed right after.
            self.root.mkdir(parents=True, exist_ok=True)
            write_text(self.config, dump_config(config))
            notes = (self.shards,) if config.data.streaming else ()
            for folder in (self.samples, self.checkpoints, *notes):
                folder.mkdir(exist_ok=True)
            if data is not None:
                write_json(self.data, data)
        except OSError as error:
            raise ConfigError(
                f"output_dir is {self.root}, where nothing can be written ({error.strerror}); "
                "choose another one"
            ) from error

    def checkpoint_to_resume(self, resume: str) -> Path | None:
        """Returns the checkpoint that ``resume`` (auto, never or a path) means; None: a fresh start."""
        if resume == "never":
            return None
        if resume == "auto":
            return next(reversed(self.all_checkpoints()), None)
        path = Path(resume)
        if not exists(path) or not path.is_dir() or not _STEP_NAME.fullmatch(path.name):
            here = ", ".join(path.name for path in self.all_checkpoints()) or "none"
            raise ConfigError(
                f"resume is {resume}, which is no checkpoint folder; in {self.checkpoints} there are: {here}"
            )
        later = [other.name for other in self.all_checkpoints() if step_of(other) > step_of(path)]
        if later:
            raise ConfigError(
                f"resume is {resume}, and {self.checkpoints} holds later ones ({', '.join(later)}) that the "
                "run would write over; name a new output_dir to branch off, or remove them to go back"
            )
        return path

    def clear_leftovers(self) -> None:
        """Removes what a killed run left half written, and finishes or undoes what it was replacing."""
        for folder in (self.root, self.checkpoints):
            for left in folder.glob(".*.old"):
                mend_swap(left.with_name(left.name.removeprefix(".").removesuffix(".old")))
            for left in folder.glob(".*.tmp"):
                remove(left)
        for left in self.root.glob(f".{self.model.name}.*"):
            remove(left)

    def set_aside(self, checkpoint: Path) -> Path:
        """Renames a damaged checkpoint, so the one before it becomes the newest; returns its new path."""
        damaged = checkpoint.with_name(f"{checkpoint.name}.damaged")
        remove(damaged)
        return checkpoint.rename(damaged)

    def remove_damaged(self, step: int) -> None:
        """Removes damaged checkpoints that are not newer than a whole one of ``step``."""
        for path in self.checkpoints.glob("step_*.damaged"):
            match = _DAMAGED_NAME.fullmatch(path.name)
            if match is not None and int(match.group(1)) <= step:
                remove(path)

    def forget_after(self, step: int) -> None:
        """Drops the lines of metrics.jsonl that a run resumed at ``step`` will write again."""
        if self.metrics.exists():
            lines = self.metrics.read_text().splitlines(keepends=True)
            kept = [line for line in lines if _step_in(line) <= step]
            write_text(self.metrics, "".join(kept))


def checkpoint_config(checkpoint: Path) -> RunConfig | None:
    """Returns a checkpoint's config: its own copy, or its run's; None if there is neither."""
    for folder in (checkpoint, checkpoint.parent.parent):
        if (folder / CONFIG).is_file():
            return read_config(folder / CONFIG)
    return None


def _check_branch(checkpoint: Path, config: RunConfig) -> None:
    """Raises ConfigError if a run of ``config`` cannot branch off from a checkpoint."""
    before = checkpoint_config(checkpoint)
    changes = [] if before is None else refused_in_branch(before, config)
    if changes:
        lines = "\n  ".join(changes)
        run = RunFolder(checkpoint.parent.parent)
        model = run.root if run.model.is_dir() else "FOLDER_OF_ITS_RUN"
        raise ConfigError(
            f"resume is {checkpoint}, a checkpoint that these settings do not fit:\n  {lines}\n"
            "a branch keeps them as they were; to change them, start a new run from the finished model's "
            f"weights: leave out resume, and set model.pretrained={model}"
        )


def _same_path(old: str, new: str) -> bool:
    """Whether two names of data mean the same existing path."""
    paths = [Path(name).expanduser() for name in (old, new)]
    return all(exists(path) for path in paths) and paths[0].resolve() == paths[1].resolve()


def _step_in(line: str) -> float:
    """Returns the step of a line of metrics.jsonl; infinity for a line that was cut short."""
    try:
        return float(json.loads(line)["step"]) if line.endswith("\n") else float("inf")
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")


def step_of(checkpoint: Path) -> int:
    """Returns a checkpoint's number of optimizer steps, from its name."""
    match = _STEP_NAME.fullmatch(checkpoint.name)
    if match is None:
        raise ValueError(f"{checkpoint} is not named step_<number>")
    return int(match.group(1))


def describe_pretrained(data: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the model section of a run's pretrained model, as plain YAML values.

    It is needed while the config is read. A run that has a checkpoint is asked itself, since it no longer
    needs the pretrained model. Otherwise torch is loaded to look at the model.

    Args:
        data: the run's plain values, not yet validated, with ``model.pretrained``.

    Raises:
        ValueError: there is no such model, or one that cannot be trained.
    """
    place, groups = data["model"]["pretrained"], data["model"].get("norm_num_groups")
    folder = RunFolder(Path(str(data.get("output_dir", RunConfig.model_fields["output_dir"].default))))
    resume, recorded = str(data.get("resume", "auto")), None
    if resume not in ("auto", "never") and exists(Path(resume)):
        recorded = checkpoint_config(Path(resume))
    elif exists(folder.config) and (folder.all_checkpoints() or folder.model.is_dir()):
        recorded = read_config(folder.config)
    if recorded is not None and recorded.model.pretrained == place:
        section = recorded.model.model_dump(mode="json", by_alias=True)
        decoder = None if recorded.decoder is None else recorded.decoder.model_dump(mode="json")
        return section if decoder is None else {**section, "decoder": decoder}

    from latentae.build import open_pretrained
    from latentae.models.adapting import describe_architecture, describe_decoder

    is_number = isinstance(groups, int) and groups > 0
    model = open_pretrained(place, groups if is_number else None)
    section, decoder = describe_architecture(model), describe_decoder(model)
    return section if decoder is None else {**section, "decoder": decoder}
