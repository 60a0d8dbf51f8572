"""How this process was started, as a person would type it again."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

_LAUNCHERS = ("accelerate", "accelerate-launch", "torchrun")
_LAUNCHER_MODULES = ("accelerate.commands.launch", "torch.distributed.run", "torch.distributed.launch")


@dataclass(frozen=True)
class Start:
    """How this process was started.

    Attributes:
        words: before this process's own arguments: its launcher with the launcher's options, and the program.
        beside: what the words leave out, such as other nodes; continues a sentence, and may be empty.
    """

    words: tuple[str, ...]
    beside: str


def how_started() -> Start:
    """Read from the command lines of the processes above this one, and the variables that launchers set."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    nodes = processes // int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    program, arguments = sys.argv[0], sys.argv[1:]
    for ancestor in _command_lines():
        split = len(ancestor) - len(arguments)
        if split > 0 and ancestor[split:] == arguments and _names(ancestor[split - 1], program):
            launcher = _launcher(ancestor[:split])
            if launcher is not None:
                return Start(launcher, f", started on each of {nodes} nodes" if nodes > 1 else "")
    if Path(program).name.startswith("train_"):
        words: tuple[str, ...] = (program_name("python"), from_here(Path(program)))
    else:
        words = (program_name("latentae"),)
    return Start(words, f", started as {processes} processes" if processes > 1 else "")


def program_name(name: str) -> str:
    """A program of this environment: its name where the shell would find it, else its path."""
    beside = Path(sys.executable).parent / name
    found = shutil.which(name)
    if not beside.exists() or (found is not None and Path(found).parent == beside.parent):
        return name
    return from_here(beside)


def from_here(path: Path) -> str:
    """The shorter of a path and the same seen from the working folder."""
    return min(str(path), os.path.relpath(path), key=len)


def _command_lines() -> list[list[str]]:
    """Of the processes above this one, the nearest first, as far as they may be read."""
    lines = []
    for process in psutil.Process().parents():
        try:
            lines.append(process.cmdline())
        except psutil.Error:  # it has ended, or belongs to somebody else
            continue
    return lines


def _names(word: str, program: str) -> bool:
    """Whether a word of a command line, a path or a module, is this program."""
    return Path(word).name == Path(program).name or Path(program).match(f"{word.replace('.', '/')}.py")


def _launcher(words: Sequence[str]) -> tuple[str, ...] | None:
    """A launcher's words as one would type them; None if they start no launcher."""
    for place, word in enumerate(words[:4]):
        if Path(word).name in _LAUNCHERS:
            return (program_name(Path(word).name), *words[place + 1 :])
        if word == "-m" and words[place + 1] in _LAUNCHER_MODULES:
            return (program_name("python"), *words[place:])
    return None
