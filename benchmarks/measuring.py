"""Measures time, operations and memory of a call; describes the machine; prints Markdown tables.

Methods take turns in one process, and a ratio is taken within each round, so that load from other programs
affects both sides alike.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

ROOT = Path(__file__).resolve().parents[1]
_MIB = 2**20


# --- options, tables


def benchmark_parser(
    doc: str, *, rounds: int | None = None, threads: int | None = None
) -> argparse.ArgumentParser:
    """Returns a parser whose --help is the script's docstring, with --rounds and --threads if given."""

    class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
        pass

    parser = argparse.ArgumentParser(description=doc, formatter_class=Formatter)
    if rounds is not None:
        parser.add_argument(
            "--rounds", type=int, default=rounds, help="measured rounds; more narrow the ranges"
        )
    if threads is not None:
        parser.add_argument("--threads", type=int, default=threads, help="threads of each process")
    return parser


def print_head(*columns: str, numbers: bool = True) -> None:
    """Prints the head of a Markdown table; all columns but the first are aligned on the right."""
    rule = " ---: |" if numbers else " --- |"
    print(f"| {' | '.join(columns)} |\n| --- |{rule * (len(columns) - 1)}", flush=True)


def print_row(*cells: object) -> None:
    """Prints a row of a Markdown table."""
    print(f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |", flush=True)


# --- where it ran


def default_device() -> torch.device:
    """Returns the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def describe_run(device: torch.device | None = None) -> str:
    """Returns hardware, threads, versions and commit as a sentence."""
    on_gpu = device is not None and device.type == "cuda"
    name = torch.cuda.get_device_name() if on_gpu else hardware()
    threads = torch.get_num_threads()
    return f"{name}, {threads} threads, torch {torch.__version__}, commit {commit()}."


def hardware() -> str:
    """Returns the name of the processor."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def commit() -> str:
    """Returns the commit of this checkout, with "-dirty" if more than benchmarks/results has changed."""
    described = _git("describe", "--always")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude)results")
    return f"{described}-dirty" if changed else described or "unknown"


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()


# --- time, ratios


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Returns the process time of a call on a CPU, wall time on a GPU."""
    if device.type == "cpu":
        started = time.process_time()
        run()
        return time.process_time() - started
    torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def in_turns(
    runs: dict[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Returns the seconds of each call per round. The calls take turns; a first round is not counted."""
    measured: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            spent = seconds(run, device)
            if number:
                measured[name].append(spent)
    return measured


def ratios(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float]:
    """Returns median, smallest and largest of the ratios of each round."""
    pairs = [a / b for a, b in zip(first, second, strict=True)]
    return statistics.median(pairs), min(pairs), max(pairs)


def show_ratio(first: Sequence[float], second: Sequence[float]) -> str:
    """Returns the ratios of each round as "median (smallest to largest)"."""
    middle, low, high = ratios(first, second)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


# --- operations


class FlopCount(TorchDispatchMode):
    """Counts the floating-point operations of convolutions and matrix products within the context.

    The formulas are torch's. `torch.utils.flop_counter.FlopCounterMode` also assigns the operations to
    modules, by hooks in the graph. These fail for gradients with respect to a leaf, which R1 and our training
    step need: "A leaf node was passed to _will_engine_execute_node".

    Attributes:
        total: the sum, a multiply-add counted as two.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        formula = flop_registry.get(function._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


def convolution_rate(
    device: torch.device, rounds: int = 5, dtype: torch.dtype = torch.float32, batch: int = 4
) -> float:
    """Returns the best rate, in operations per second, of some convolutions of autoencoders.

    Args:
        dtype: of images and weights. Float32 may be rounded to TensorFloat-32, as torch is set.
        batch: images at once. A GPU takes more of them to be busy.
    """
    best = 0.0
    shapes = itertools.product(
        ((64, 128), (128, 64), (256, 32)), (torch.contiguous_format, torch.channels_last)
    )
    for (channels, size), order in shapes:
        images = torch.randn(batch, channels, size, size).to(device, dtype).contiguous(memory_format=order)
        weight = torch.randn(channels, channels, 3, 3).to(device, dtype).contiguous(memory_format=order)
        work = 2 * 9 * channels**2 * batch * size**2
        spent = [
            seconds(lambda x=images, w=weight: F.conv2d(x, w, padding=1), device) for _ in range(rounds + 1)
        ]
        best = max(best, work / min(spent[1:]))
    return best


# --- memory


def peak_memory(run: Callable[[], object], device: torch.device) -> float:
    """Returns the MiB by which a call raises the peak above what was held before it.

    On a CPU this is the memory of the process, including the libraries' workspace. Measure each call in a
    process of its own (``in_fresh_process``), where freed tensors return to the system.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - before) / _MIB
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _status("VmRSS")
    run()
    return (_status("VmHWM") - before) / 1024


def in_fresh_process(script: str, *arguments: object) -> float:
    """Runs a script in a new process and returns the number in the last line of its output.

    Raises:
        RuntimeError: the process failed.
    """
    # Without this setting malloc keeps freed tensors, and later ones reuse them.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} failed:\n{done.stderr[-2000:]}")
    return float(done.stdout.splitlines()[-1])


def _status(name: str) -> int:
    """Returns a number of kB from the status of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])
