"""The command that started this process, as a person would type it again.

It is read from the command lines of the parent processes. The settings that a launcher passes in environment
variables are the business of launcher_settings.py.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_LAUNCHER_PROGRAMS = ("accelerate", "accelerate-launch", "torchrun")
_LAUNCHER_MODULES = ("accelerate.commands.launch", "torch.distributed.run", "torch.distributed.launch")


@dataclass(frozen=True)
class Start:
    """How this process was started.

    Attributes:
        words: the words before this process's own arguments: the launcher with its options, and the program.
        beside: what the words do not say, such as the number of nodes. It continues a sentence; may be empty.
    """

    words: tuple[str, ...]
    beside: str


def how_started() -> Start:
    """Finds the launcher among the parent processes, and counts processes by the launcher's variables."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    nodes = processes // int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    program, arguments = sys.argv[0], sys.argv[1:]
    for ancestor in _command_lines():
        split = len(ancestor) - len(arguments)
        if split > 0 and ancestor[split:] == arguments and _names(ancestor[split - 1], program):
            launcher = _launcher(ancestor[:split])
            if launcher is not None:
                return Start(launcher, f", started on each of {nodes} nodes" if nodes > 1 else "")
    if is_training_script(program):
        words: tuple[str, ...] = (program_name("python"), from_here(Path(program)))
    else:
        words = (program_name("latentae"),)
    return Start(words, f", started as {processes} processes" if processes > 1 else "")


def is_training_script(program: str) -> bool:
    """Whether a program is one of scripts/train_*.py, which take no `train FAMILY` before their settings."""
    return Path(program).name.startswith("train_")


def program_name(name: str) -> str:
    """How to call a program of this environment: by its name where the shell finds it, else by its path."""
    beside = Path(sys.executable).parent / name
    found = shutil.which(name)
    if not beside.exists() or (found is not None and Path(found).parent == beside.parent):
        return name
    return from_here(beside)


def from_here(path: Path) -> str:
    """The shorter of a path and the same path relative to the working folder."""
    return min(str(path), os.path.relpath(path), key=len)


def _command_lines() -> list[list[str]]:
    """The command lines of the parent processes, the nearest first, as far as the system shows them."""
    lines = []
    # A process may have ended, or belong to somebody else, whose processes the system may hide altogether.
    with suppress(psutil.Error):
        for process in psutil.Process().parents():
            with suppress(psutil.Error):
                lines.append(process.cmdline())
    return lines


def _names(word: str, program: str) -> bool:
    """Whether a word of a command line, a path or a module's name, stands for this program."""
    return Path(word).name == Path(program).name or Path(program).match(f"{word.replace('.', '/')}.py")


def _launcher(words: Sequence[str]) -> tuple[str, ...] | None:
    """The words of a launcher as a person would type them; None if these words start no launcher."""
    for place, word in enumerate(words[:4]):
        if Path(word).name in _LAUNCHER_PROGRAMS:
            return (program_name(Path(word).name), *words[place + 1 :])
        if word == "-m" and words[place + 1] in _LAUNCHER_MODULES:
            return (program_name("python"), *words[place:])
    return None
