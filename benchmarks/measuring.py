"""Time, floating-point operations and memory of a call, and how fast this machine convolves."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

_MIB = 2**20


class FlopCount(TorchDispatchMode):
    """Context that counts the floating-point operations of convolutions and matrix products as ``total``."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        formula = flop_registry.get(function._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Process time of a call on a CPU, which other programs' work does not enter; wall time on a GPU."""
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
    """Seconds of each of ``runs``, taking turns, after one round that does not count."""
    measured: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            spent = seconds(run, device)
            if number:
                measured[name].append(spent)
    return measured


def ratios(slow: list[float], fast: list[float]) -> tuple[float, float, float]:
    """Median, least and largest of the rounds' ratios."""
    pairs = [a / b for a, b in zip(slow, fast, strict=True)]
    return statistics.median(pairs), min(pairs), max(pairs)


def convolution_rate(device: torch.device, rounds: int = 5) -> float:
    """Floating-point operations per second of the best of some float32 convolutions of autoencoders."""
    best = 0.0
    for channels, size in ((64, 128), (128, 64), (256, 32)):
        images = torch.randn(4, channels, size, size, device=device)
        weight = torch.randn(channels, channels, 3, 3, device=device)
        work = 2 * 9 * channels**2 * 4 * size**2
        spent = [
            seconds(lambda x=images, w=weight: F.conv2d(x, w, padding=1), device) for _ in range(rounds + 1)
        ]
        best = max(best, work / min(spent[1:]))
    return best


def peak_memory(run: Callable[[], object], device: torch.device) -> float:
    """MiB that a call takes at most beyond what was there before it.

    On a CPU it is the process's own, the libraries' working space included: start Python with
    MALLOC_MMAP_THRESHOLD_=65536, so that freed tensors return to the system, and measure one thing a process.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - before) / _MIB
    Path("/proc/self/clear_refs").write_text("5")  # forgets the highest mark
    before = _status("VmRSS")
    run()
    return (_status("VmHWM") - before) / 1024


def _status(name: str) -> int:
    """A number of kB out of the process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])
