"""Runs the speed benchmarks and writes each to results/<theme>_<hardware>_<date>.md.

Each runs in a process of its own. On a CPU with one thread the process is held to one core, so that process
time is meaningful next to other programs. What a file has below its "## Notes" is kept.
"""

from __future__ import annotations

import datetime
import os
import re
import subprocess
import sys
from pathlib import Path

import torch
from measuring import benchmark_parser, hardware

_HERE = Path(__file__).parent
_TITLES = {
    "step": "The training step",
    "inference": "Encoding and decoding",
    "scaling": "What a step costs as it grows",
}
_NOTES = "\n## Notes\n"


def main() -> None:
    parser = benchmark_parser(__doc__, rounds=3, threads=1)
    parser.add_argument(
        "--themes", nargs="+", default=list(_TITLES), choices=list(_TITLES), help="benchmarks to run"
    )
    parser.add_argument("--out", type=Path, default=_HERE / "results", help="folder of the pages")
    arguments = parser.parse_args()
    short = hardware_name()
    for theme in arguments.themes:
        options = ["--rounds", str(arguments.rounds), "--threads", str(arguments.threads)]
        command = [f"bench_{theme}.py", *options]
        tables = subprocess.run(
            [sys.executable, str(_HERE / command[0]), *command[1:]],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            preexec_fn=_hold_to_one_core if arguments.threads == 1 else None,
        ).stdout
        path = arguments.out / f"{theme}_{short}_{datetime.date.today()}.md"
        path.write_text(page(theme, " ".join(command), tables, path.read_text() if path.exists() else ""))
        print(f"written: {path}")


def page(theme: str, command: str, tables: str, before: str = "") -> str:
    """Returns a page of results, with the notes of the previous page."""
    _, heading, notes = before.partition(_NOTES)
    written = f"# {_TITLES[theme]}\n\nWritten by `python benchmarks/{command}`.\n\n{tables.strip()}\n"
    return written + heading + notes


def hardware_name() -> str:
    """Returns a word for file names, such as `xeon-avx512` or `nvidia-h200`."""
    if torch.cuda.is_available():
        return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    family = re.search(r"xeon|epyc|ryzen|core|apple m\d|neoverse|graviton", hardware().lower())
    name = family[0] if family else re.sub(r"[^a-z0-9]+", "-", hardware().lower()).strip("-")
    capability = torch.backends.cpu.get_cpu_capability().lower()
    return f"{name.replace(' ', '-')}-{capability}"


def _hold_to_one_core() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


if __name__ == "__main__":
    main()
