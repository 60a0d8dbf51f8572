"""Measures training and inference on a GPU, and writes one Markdown page with the card, driver and versions.

    PYTHONPATH=. python benchmarks/gpu.py --out measured --minutes 9

Nothing is downloaded: loss networks have random weights, and images are the built-in photographs. After each
measurement the results are saved in the folder --out. A call that runs out of its minutes stops, and says how
to continue; the same command then measures the rest. What fails is recorded with its reason, and the page
names it; --retry measures it again. --device cpu --tiny is a rehearsal: everything runs, on models and images
so small that the numbers mean nothing.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
from gpu_sections import evaluation_cells, inference_cells, loader_cells, lookup_cells
from gpu_steps import Cell, Plan, Row, profile_cells, rate_cells, step_cells
from measuring import benchmark_parser, commit, default_device, hardware
from random_weights import use_random_trunks

from latentae.training import speed

_FILE = "measured.json"
_FIRST_GUESS = 30.0  # seconds of the longest measurement, before there is one


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: its heading.
        cells: its measurements, each of which returns rows of one table.
        more: columns that follow from all rows, which it adds in place.
        notes: what the columns mean.
    """

    title: str
    cells: Callable[[Plan], Iterator[Cell]]
    notes: str
    more: Callable[[list[Row], list[Row]], None] = lambda rows, rates: None


def add_shares(rows: list[Row], rates: list[Row]) -> None:
    """Adds how a step compares with the peers, and with the peak of the convolutions, to the rows of steps.

    Args:
        rows: of the section of steps.
        rates: of the section of rates.
    """
    peaks = {row["format"]: row["TFLOP/s of 3x3 convolutions"] for row in rates}
    work = {row["model"]: row["GFLOP per image"] for row in rows if "GFLOP per image" in row}
    peers = ("taming", "diffusers")
    speeds = {
        (row["model"], row["format"], row["batch"], row["step"]): row["images/s"]
        for row in rows
        if row["step"] in peers
    }
    for row in rows:
        if row["model"] in work and row["step"] not in peers and peaks.get(row["format"]):
            share = row["images/s"] * work[row["model"]] / 1e3 / peaks[row["format"]]
            row["of the convolutions' peak"] = f"{share:.1%}"
        for peer in peers:
            other = speeds.get((row["model"], row["format"], row["batch"], peer))
            if other and row["step"] not in peers:
                row[f"times those of {peer}"] = f"{row['images/s'] / other:.2f}"
        row.pop("GFLOP per image", None)


SECTIONS = {
    "rates": Section(
        "The card's own limit",
        rate_cells,
        "The best rate of a few 3x3 convolutions of 64 to 256 channels, either memory order.",
    ),
    "steps": Section(
        "The training step at 256 pixels",
        step_cells,
        "Ours is the trainer's whole optimizer step, with the moving average of the weights; a peer's is its "
        "formulation with two fused AdamWs. The share of the peak counts the operations of the stock step.",
        add_shares,
    ),
    "inference": Section(
        "Decoding and encoding one image in bfloat16",
        inference_cells,
        "Differences are relative to stock bfloat16. For comparison: FLUX.2's decoder at 1024 pixels was "
        "reported to take 29 ms on an H200, and 98 ms as diffusers runs it.",
    ),
    "look-up": Section("The nearest code", lookup_cells, "Peaks are beyond latents and codes."),
    "evaluation": Section(
        "Evaluation", evaluation_cells, "JPEG files to numbers, reading and reconstructing included."
    ),
    "loader": Section(
        "The data loader",
        loader_cells,
        "JPEG files of 256 pixels. A step needs as many workers as its images/s divided by a worker's.",
    ),
    "profile": Section(
        "One step of performance=auto in bf16",
        profile_cells,
        "The ten costliest kernels; on a CPU, operations.",
    ),
}


@dataclass
class Store:
    """Rows, or the reason for none, of each measurement by section and name, in a JSON file.

    Attributes:
        path: of the file.
        settings: what the numbers depend on; a file with others is not continued.
    """

    path: Path
    settings: dict[str, Any]
    cells: dict[str, dict[str, Any]] = field(default_factory=dict)

    def open(self) -> None:
        """Reads the file, if there is one.

        Raises:
            ValueError: it was measured under other settings.
        """
        if not self.path.exists():
            return
        kept = json.loads(self.path.read_text())
        if kept["settings"] != self.settings:
            raise ValueError(
                f"{self.path} was measured with {kept['settings']}, and this would be {self.settings}: "
                "choose another folder by --out"
            )
        self.cells = kept["cells"]

    def add(self, section: str, name: str, measured: dict[str, Any]) -> None:
        """Adds a measurement, and saves all."""
        self.cells.setdefault(section, {})[name] = measured
        self.path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.path.with_suffix(".tmp")
        aside.write_text(json.dumps({"settings": self.settings, "cells": self.cells}, indent=1))
        aside.replace(self.path)

    def rows(self, section: str) -> list[Row]:
        """Returns copies of all rows of a section."""
        cells = self.cells.get(section, {}).values()
        return [dict(row) for cell in cells for row in cell.get("rows", [])]

    def failures(self, section: str) -> dict[str, str]:
        """Returns name -> reason of what could not be measured."""
        return {n: cell["error"] for n, cell in self.cells.get(section, {}).items() if "error" in cell}


def main() -> int:
    arguments = _parse()
    device = torch.device(arguments.device or default_device())
    plan = Plan(device, arguments.tiny, arguments.rounds)
    settings = {"machine": machine(device), "tiny": arguments.tiny, "rounds": arguments.rounds}
    store = Store(arguments.out / _FILE, settings)
    try:
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError("there is no CUDA device: add --device cpu --tiny for a rehearsal")
        store.open()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    use_random_trunks(_replace)
    if device.type == "cpu":
        speed.BACKEND = "aot_eager"  # inductor needs a C++ compiler there, and minutes
    left = measure(store, plan, arguments.sections, 60 * arguments.minutes, retry=arguments.retry)
    page = arguments.page or arguments.out / "page.md"
    page.write_text(write_page(store))
    print(f"written: {page}")
    if left:
        print(f"{left} measurements are left: run the same command again to continue")
    return 0


def measure(store: Store, plan: Plan, sections: list[str], seconds: float, *, retry: bool = False) -> int:
    """Makes the measurements that are missing, as far as the time allows. Returns how many are left."""
    ends, longest = time.monotonic() + seconds, _FIRST_GUESS
    waiting = [
        (section, name, run)
        for section in sections
        for name, run in SECTIONS[section].cells(plan)
        if name not in store.cells.get(section, {}) or (retry and name in store.failures(section))
    ]
    for number, (section, name, run) in enumerate(waiting):
        began = time.monotonic()
        if began + longest > ends and number > 0:
            return len(waiting) - number
        try:
            measured: dict[str, Any] = {"rows": run()}
        # Whatever a measurement dies of must not cost those after it.
        except Exception as error:
            lines = str(error).strip().splitlines()
            measured = {"error": f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]}
        took = time.monotonic() - began
        longest = max(longest, took)
        print(
            f"{section}: {name}: {took:.1f} s{'' if 'rows' in measured else ', ' + measured['error']}",
            flush=True,
        )
        store.add(section, name, measured)
    return 0


def write_page(store: Store) -> str:
    """Returns the page of all that was measured, as Markdown."""
    machine_, tiny = store.settings["machine"], store.settings["tiny"]
    lines = ["# On a GPU" if machine_["device"] != "cpu" else "# A rehearsal on a CPU", ""]
    lines += [
        "Written by `python benchmarks/gpu.py`. " + "; ".join(f"{k} {v}" for k, v in machine_.items()) + "."
    ]
    lines += [f"Medians of {store.settings['rounds']} rounds, {datetime.date.today()}."]
    if tiny:
        lines += [
            "",
            "Models and images are tiny: this shows that everything runs, and no number means anything.",
        ]
    rates = store.rows("rates")
    for name, section in SECTIONS.items():
        rows, failures = store.rows(name), store.failures(name)
        if not rows and not failures:
            continue
        section.more(rows, rates)
        lines += ["", f"## {section.title}", "", section.notes, "", *table(rows)]
        if failures:
            lines += ["", "Not measured:", "", *(f"- {cell}: {why}" for cell, why in failures.items())]
    return "\n".join(lines) + "\n"


def table(rows: list[Row]) -> list[str]:
    """Returns a Markdown table; a column for each key of any row, in the order in which they appear."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if not columns:
        return []
    lines = [columns, ["---"] + ["---:"] * (len(columns) - 1)]
    lines += [[str(row.get(column, "")).replace("|", "/") for column in columns] for row in rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def machine(device: torch.device) -> dict[str, str]:
    """Returns what the numbers depend on: the device, its driver, versions, and the commit."""
    found = {"device": "cpu", "processor": hardware()}
    if device.type == "cuda" and torch.cuda.is_available():
        found["device"] = torch.cuda.get_device_name(device)
        found["memory"] = f"{torch.cuda.get_device_properties(device).total_memory / 2**30:.0f} GiB"
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            answer = subprocess.run(query, capture_output=True, text=True).stdout.split()
        except OSError:  # a container without the tool
            answer = []
        found["driver"] = answer[0] if answer else "unknown"
        found["CUDA"], found["cuDNN"] = str(torch.version.cuda), str(torch.backends.cudnn.version())
    found |= {"Python": platform.python_version(), "torch": torch.__version__}
    return found | {"diffusers": diffusers.__version__, "commit": commit()}


def _replace(path: str, value: object) -> None:
    module, _, name = path.rpartition(".")
    setattr(importlib.import_module(module), name, value)


def _parse() -> argparse.Namespace:
    parser = benchmark_parser(__doc__, rounds=5)
    parser.add_argument("--out", type=Path, default=Path("gpu_measured"), help="folder of the results")
    parser.add_argument("--page", type=Path, help="file of the page; by default page.md in that folder")
    parser.add_argument("--minutes", type=float, default=9.0, help="time of this call")
    parser.add_argument("--sections", nargs="+", default=list(SECTIONS), choices=list(SECTIONS), help="parts")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="by default the GPU if there is one")
    parser.add_argument("--tiny", action="store_true", help="rehearse on tiny models and images")
    parser.add_argument("--retry", action="store_true", help="measure again what failed")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
