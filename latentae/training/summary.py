"""The closing words of a run: its numbers, and the commands to type next, as this process was started."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from latentae.config import RunConfig
from latentae.training.run_folder import RunFolder

_STOCK_CLASSES = ("AutoencoderKL", "AutoencoderKLFlux2", "VQModel")
_SOURCE, _MEASURED = "scale_source", "measured on the training images"
_ROWS = {
    "psnr": ("PSNR", "{:.2f} dB"),
    "psnr_downscaled": ("downscaled", "{:.2f} dB (PSNR at the encoder's size)"),
    "alpha_psnr": ("alpha PSNR", "{:.2f} dB"),
    "ssim": ("SSIM", "{:.3f}"),
    "lpips": ("LPIPS", "{:.3f} (alex)"),
    "codebook_usage": ("codes in use", "{:.0%}"),
    "scaling_factor": ("latent scale", "{:.4f} ({scale_source})"),
}
_LAUNCHER_PROGRAMS = ("accelerate", "accelerate-launch", "torchrun")
_LAUNCHER_MODULES = ("accelerate.commands.launch", "torch.distributed.run", "torch.distributed.launch")


def finished_summary(folder: RunFolder, config: RunConfig) -> dict[str, Any] | None:
    """Returns the summary of the run in ``folder`` if it has all of ``config``'s steps, otherwise None."""
    if not folder.summary.exists() or not folder.model.is_dir():
        return None
    try:
        summary: dict[str, Any] = json.loads(folder.summary.read_text())
    except json.JSONDecodeError:
        return None  # cut short: the run's end writes it again
    return summary if summary["step"] >= config.max_steps else None


def describe(folder: RunFolder, summary: dict[str, Any]) -> str:
    """Returns the closing words: the numbers, where everything is, and what to try next."""
    rows = [
        f"  {label:<14}{form.format(summary[key], **{_SOURCE: summary.get(_SOURCE, _MEASURED)})}"
        for key, (label, form) in _ROWS.items()
        if summary.get(key) is not None
    ]
    # The call that opens the model: diffusers' own if a stock class can hold it.
    name = json.loads((folder.model / "config.json").read_text())["_class_name"]
    loader = f"diffusers.{name}.from_pretrained" if name in _STOCK_CLASSES else "latentae.load_autoencoder"
    whole = folder.whole(summary["step"])
    sides = [f"  whole images  {whole}  (images at the left, reconstructions at the right)"]
    return "\n".join(
        [
            f"Validation on {summary['images']} images after {summary['step']} steps "
            f"({summary['seconds']:.0f} s of training):",
            *rows,
            "",
            f"  pictures      {folder.sample(summary['step'])}  (images above, reconstructions below)",
            *(sides if whole.exists() else []),  # earlier versions drew none
            f"  model         {folder.model}  (loads with {loader})",
            f"  log           {folder.metrics}",
            *_next_commands(folder, summary["step"]),
        ]
    )


def _next_commands(folder: RunFolder, step: int) -> list[str]:
    """Returns lines with what to type next; none for a run that Python code started."""
    if not (_is_training_script(sys.argv[0]) or sys.argv[1:2] == ["train"]):
        return []
    start = find_start_command()
    return [
        "",
        "Next:",
        f"  {_command(start)} data.name=path/to/images output_dir=my_run",
        f"  {_command(start, same_run=True)} max_steps={2 * step}  # continues this run{start.note}",
        f"  {_program_name('tensorboard')} --logdir {folder.root}",
    ]


def _command(start: StartCommand, *, same_run: bool = False) -> str:
    """Returns the command that starts this program again; ``same_run`` keeps its arguments."""
    words, given = list(start.words), sys.argv[1:]
    if not _is_training_script(sys.argv[0]):  # `latentae train FAMILY`
        words, given = [*words, *given[:2]], given[2:]
    if same_run:
        words += [argument for argument in given if not argument.startswith(("max_steps=", "resume="))]
    elif "--config" in given:
        words += given[given.index("--config") :][:2]
    return shlex.join(words)


@dataclass(frozen=True)
class StartCommand:
    """The command that started this process, as a person would type it again.

    Attributes:
        words: the words before this process's own arguments: the launcher with its options, and the program.
        note: what the words do not say, such as the number of nodes. It continues a sentence; may be empty.
    """

    words: tuple[str, ...]
    note: str


def find_start_command() -> StartCommand:
    """Finds the launcher in the parents' command lines, and the processes in the launcher's variables."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    nodes = processes // int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    program, arguments = sys.argv[0], sys.argv[1:]
    for ancestor in _parent_command_lines():
        split = len(ancestor) - len(arguments)
        if split > 0 and ancestor[split:] == arguments and _names_program(ancestor[split - 1], program):
            launcher = _launcher(ancestor[:split])
            if launcher is not None:
                return StartCommand(launcher, f", started on each of {nodes} nodes" if nodes > 1 else "")
    if _is_training_script(program):
        words: tuple[str, ...] = (_program_name("python"), _shorter_path(Path(program)))
    else:
        words = (_program_name("latentae"),)
    return StartCommand(words, f", started as {processes} processes" if processes > 1 else "")


def _is_training_script(program: str) -> bool:
    """Whether a program is one of scripts/train_*.py, which take no `train FAMILY` before their settings."""
    return Path(program).name.startswith("train_")


def _program_name(name: str) -> str:
    """Returns how to call a program of this environment: by name if the shell finds it, otherwise by path."""
    beside = Path(sys.executable).parent / name
    found = shutil.which(name)
    if not beside.exists() or (found is not None and Path(found).parent == beside.parent):
        return name
    return _shorter_path(beside)


def _shorter_path(path: Path) -> str:
    """Returns the shorter of a path and the same path relative to the working folder."""
    return min(str(path), os.path.relpath(path), key=len)


def _parent_command_lines() -> list[list[str]]:
    """Returns the command lines of the parent processes, nearest first, as far as the system shows them."""
    lines = []
    # A process may have ended, or belong to another user, whose processes the system may hide.
    with suppress(psutil.Error):
        for process in psutil.Process().parents():
            with suppress(psutil.Error):
                lines.append(process.cmdline())
    return lines


def _names_program(word: str, program: str) -> bool:
    """Whether a word of a command line, a path or a module's name, means this program."""
    return Path(word).name == Path(program).name or Path(program).match(f"{word.replace('.', '/')}.py")


def _launcher(words: Sequence[str]) -> tuple[str, ...] | None:
    """Returns the words of a launcher as a person would type them; None if these words start no launcher."""
    for place, word in enumerate(words[:4]):
        if Path(word).name in _LAUNCHER_PROGRAMS:
            return (_program_name(Path(word).name), *words[place + 1 :])
        if word == "-m" and words[place + 1] in _LAUNCHER_MODULES:
            return (_program_name("python"), *words[place:])
    return None
