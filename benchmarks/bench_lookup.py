"""Compares the nearest-code look-up with its usual forms: time, memory and wrong answers, in one run.

`python benchmarks/bench_lookup.py [--rows N] [--codes K] [--dims D ...] [--mean M --deviation S]` prints two
tables. The methods take turns on the same latents and codes. Ratios are medians over the rounds of process
time against process time (wall time on a GPU, after synchronisation), with their range. An answer is wrong if
float64 finds a nearer code. For memory each method runs once in a process of its own: its memory is the rise
of the process's peak over what it held before. A method that would take several GB is left out.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from machine import commit, hardware
from torch import Tensor

from latentae.quantizers import nearest_code

Lookup = Callable[[Tensor, Tensor], Tensor]
OURS = "nearest_code"
# What the differences of a broadcast, N × K × d, and the package's matrices, about four of N × K, may take.
BROADCAST_BYTES = 1 << 30
PACKAGE_BYTES = 1 << 32


def main() -> None:
    arguments = _parse()
    torch.set_num_threads(arguments.threads)
    if arguments.child:
        print(_peak_bytes(arguments.child, _data(arguments, arguments.dims[0])))
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else hardware()
    print(f"{name}, {arguments.threads} threads, torch {torch.__version__}, commit {commit()}")
    spread = f"mean {arguments.mean:g}, deviation {arguments.deviation:g}"
    print(f"{arguments.rows} latents, {arguments.codes} codes, {spread}\n")
    print("| d | method | ms | ratio to nearest_code (range) | rows with a farther code |")
    print("| --- | --- | --- | --- | --- |")
    for dim in arguments.dims:
        data = [values.to(device) for values in _data(arguments, dim)]
        _print_times(dim, data, arguments.rounds)
    print("\n| d | method | peak memory, MB | of nearest_code's |")
    print("| --- | --- | --- | --- |")
    for dim in arguments.dims:
        _print_memory(dim, arguments)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=16384)
    parser.add_argument("--codes", type=int, default=1024)
    parser.add_argument("--dims", type=int, nargs="+", default=[8, 32, 64])
    parser.add_argument("--mean", type=float, default=0.0)
    parser.add_argument("--deviation", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--child", help=argparse.SUPPRESS)  # the method whose memory is measured
    return parser.parse_args()


def _data(arguments: argparse.Namespace, dim: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(dim)
    latents = torch.randn(arguments.rows, dim, generator=generator)
    codebook = torch.randn(arguments.codes, dim, generator=generator)
    return arguments.mean + arguments.deviation * latents, arguments.mean + arguments.deviation * codebook


def _methods(latents: Tensor, codebook: Tensor) -> dict[str, Lookup]:
    methods: dict[str, Lookup] = {OURS: nearest_code, "cdist, argmin": _cdist}
    matrix_bytes = len(latents) * len(codebook) * latents.element_size()
    if matrix_bytes * latents.shape[1] <= BROADCAST_BYTES:
        methods["broadcast"] = _broadcast
    if matrix_bytes * 4 <= PACKAGE_BYTES:
        methods["vector-quantize-pytorch"] = _package(codebook)
    return methods


def _cdist(latents: Tensor, codebook: Tensor) -> Tensor:
    return torch.cdist(latents, codebook).argmin(dim=1)


def _broadcast(latents: Tensor, codebook: Tensor) -> Tensor:
    return (latents[:, None] - codebook).square().sum(dim=2).argmin(dim=1)


def _package(codebook: Tensor) -> Lookup:
    """The package's quantizer in eval mode, which gathers the codes as well: a small part of its work."""
    from vector_quantize_pytorch import VectorQuantize

    num_codes, dim = codebook.shape
    quantizer = VectorQuantize(dim=dim, codebook_size=num_codes).to(codebook.device).eval()
    with torch.no_grad():
        quantizer.codebook = codebook
    return lambda latents, codebook: quantizer(latents[None])[1][0]


def _print_times(dim: int, data: list[Tensor], rounds: int) -> None:
    methods = _methods(*data)
    answers = {name: method(*data) for name, method in methods.items()}
    turns = [{name: _seconds(method, data) for name, method in methods.items()} for _ in range(rounds)]
    nearest = nearest_code(*(values.double() for values in data))
    for name in methods:
        ratios = sorted(turn[name] / turn[OURS] for turn in turns)
        milliseconds = 1e3 * statistics.median(turn[name] for turn in turns)
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        wrong = _farther(*data, answers[name], nearest)
        print(f"| {dim} | {name} | {milliseconds:.1f} | {spread if name != OURS else '1'} | {wrong:.3%} |")


@torch.no_grad()
def _seconds(method: Lookup, data: list[Tensor]) -> float:
    on_gpu = data[0].is_cuda
    clock = time.perf_counter if on_gpu else time.process_time
    if on_gpu:
        torch.cuda.synchronize()
    started = clock()
    method(*data)
    if on_gpu:
        torch.cuda.synchronize()
    return clock() - started


def _farther(latents: Tensor, codebook: Tensor, indices: Tensor, others: Tensor) -> float:
    """Returns the share of the rows whose code at indices is farther, in float64, than the one at others."""
    squares = [(latents.double() - codebook[chosen].double()).square().sum(1) for chosen in (indices, others)]
    return (squares[0] > squares[1]).double().mean().item()


def _print_memory(dim: int, arguments: argparse.Namespace) -> None:
    problem = [f"--{name}={getattr(arguments, name)}" for name in ("rows", "codes", "threads")]
    peaks = {}
    for name in _methods(*_data(arguments, dim)):
        command = [sys.executable, __file__, *problem, f"--dims={dim}", f"--child={name}"]
        peaks[name] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    for name, peak in peaks.items():
        print(f"| {dim} | {name} | {peak / 1e6:.1f} | {peak / peaks[OURS]:.1f} |")


@torch.no_grad()
def _peak_bytes(name: str, data: tuple[Tensor, Tensor]) -> int:
    """How far one call raises this process's peak; what only the first call of all loads is left out."""
    if torch.cuda.is_available():
        data = (data[0].cuda(), data[1].cuda())
    method = _methods(*data)[name]
    method(data[0][:64], data[1][:64])
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        method(*data)
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = _status("VmRSS")
    method(*data)
    return _status("VmHWM") - before


def _status(field: str) -> int:
    """A line of this process's status, in bytes."""
    found = re.search(rf"{field}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found.group(1))


if __name__ == "__main__":
    main()
