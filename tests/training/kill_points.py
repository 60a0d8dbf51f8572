"""Runs that strike themselves with a signal, as a machine would, at a point that a test names."""

import os
import signal
import sys
from pathlib import Path

import torch

from latentae import cli, files
from latentae.data import BrokenImageError
from latentae.files import aside_of
from latentae.latents import calibration
from latentae.training import checkpoint, finish, trainer
from latentae.training.log import Recorder
from latentae.training.step import TrainingStep


def die_at_call(owner, name, number, before=None, *, by=signal.SIGKILL):
    """Lets a function's call of the given number, counted from 1, begin with a signal to this process.

    In its place ``before`` is called first, with the function and the call's arguments.
    """
    original, calls = getattr(owner, name), 0

    def counted(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == number:
            if before is not None:
                before(original, *arguments, **options)
            os.kill(os.getpid(), by)
        return original(*arguments, **options)

    setattr(owner, name, counted)


def die_with_half_of(folder, name):
    """Lets the run end when the file of that name in that folder is half written."""
    save = torch.save

    def struck(state, file, *arguments, **options):
        save(state, file, *arguments, **options)
        if Path(file).parent.name == folder and Path(file).name == name:
            os.truncate(file, Path(file).stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = struck


def list_half(write_manifest, folder):
    aside_of(folder / checkpoint.MANIFEST).write_text('{"files": {"model.safe')


def export_half(export, model, path):
    export(model, path)
    weights = path / "diffusion_pytorch_model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)


def remove_half(remove, path):
    aside = path.rename(aside_of(path))
    (aside / "model.safetensors").unlink()


def log_half(write, recorder, step, *arguments, **options):
    with recorder.folder.metrics.open("a") as file:
        file.write(f'{{"step": {step}, "images_per_sec')


# For a run of 6 steps of two micro-batches, with checkpoints every 2 steps of which 2 are kept: how it dies,
# and the newest thing that it leaves.
POINTS = {
    "between the micro-batches of step 4": (
        lambda: die_at_call(TrainingStep, "__call__", 8),
        "checkpoints/step_000002",
    ),
    "between the two optimizers in step 4": (
        lambda: die_at_call(torch.optim.AdamW, "step", 7),
        "checkpoints/step_000002",
    ),
    "in a line of the log": (lambda: die_at_call(Recorder, "write", 2, log_half), "checkpoints/step_000002"),
    "in a file of a checkpoint": (
        lambda: die_with_half_of(".step_000004.tmp", "optimizer.bin"),
        "checkpoints/.step_000004.tmp/optimizer.bin",
    ),
    "before a checkpoint's list of files": (
        lambda: die_at_call(checkpoint, "write_manifest", 2),
        "checkpoints/.step_000004.tmp/progress.json",
    ),
    "in a checkpoint's list of files": (
        lambda: die_at_call(checkpoint, "write_manifest", 2, list_half),
        "checkpoints/.step_000004.tmp/.manifest.json.tmp",
    ),
    "before a checkpoint gets its name": (
        lambda: die_at_call(checkpoint, "swap_in", 2),
        "checkpoints/.step_000004.tmp/manifest.json",
    ),
    "before the best is marked": (
        lambda: die_at_call(checkpoint, "mark_best", 2),
        "checkpoints/step_000004/manifest.json",
    ),
    "while an old checkpoint is removed": (
        lambda: die_at_call(checkpoint, "remove", 1, remove_half),
        "checkpoints/.step_000002.tmp/optimizer.bin",
    ),
    "while the scale is measured": (
        lambda: die_at_call(finish, "calibrate_on", 1),
        "checkpoints/step_000006/manifest.json",
    ),
    "while the model is written": (
        lambda: die_at_call(finish, "export_diffusers", 1, export_half),
        ".model.*/model/diffusion_pytorch_model.safetensors",
    ),
    "before the model gets its name": (
        lambda: die_at_call(files, "swap_in", 1),
        ".model.*/model/diffusion_pytorch_model.safetensors",
    ),
    "before the summary": (lambda: die_at_call(trainer, "write_json", 2), "model/config.json"),
}


def fail(*arguments):
    raise BrokenImageError("none of the images can be decoded")


def close_output(*arguments, **options):
    """Lets the reader of standard output go; found out in the next line of the log."""
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)


# The same run made to save and leave: how, the step that it has saved then, and its exit code.
REQUESTS = {
    "SIGTERM in step 3": (lambda: die_at_call(TrainingStep, "__call__", 5, by=signal.SIGTERM), 3, 0),
    "SIGINT in step 4": (lambda: die_at_call(TrainingStep, "__call__", 8, by=signal.SIGINT), 4, 0),
    "SIGUSR1 in step 6": (lambda: die_at_call(TrainingStep, "__call__", 12, by=signal.SIGUSR1), 6, 0),
    "SIGHUP in step 5": (lambda: die_at_call(TrainingStep, "__call__", 9, by=signal.SIGHUP), 5, 0),
    "a closed output pipe in step 3": (
        lambda: die_at_call(TrainingStep, "__call__", 5, close_output, by=signal.SIGCONT),
        4,
        0,
    ),
    "SIGTERM in the export": (
        lambda: die_at_call(finish, "export_diffusers", 1, export_half, by=signal.SIGTERM),
        6,
        0,
    ),
    "a fault in the first micro-batch of step 4": (
        lambda: die_at_call(TrainingStep, "__call__", 7, fail),
        3,
        1,
    ),
}


def train(arguments, point=None):
    """A run from its arguments, in a process of its own; with a point it is struck there."""
    calibration.FEWEST_VIEWS = 16  # what is tried here is not the scale
    if point is not None:
        (POINTS | REQUESTS)[point][0]()
    sys.exit(cli.train("vqgan", arguments))
