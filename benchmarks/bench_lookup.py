"""Compares the nearest-code look-up with its usual forms: time, memory and wrong answers.

The methods take turns on the same latents and codes. Ratios are medians over the rounds of process time (wall
time on a GPU), with their range. An answer is wrong if float64 finds a nearer code. The memory of a method is
how far one call raises the peak of a process of its own. Methods that would take several GB are left out, and
so is a package that is not installed.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from importlib.util import find_spec

import torch
from measuring import (
    benchmark_parser,
    default_device,
    describe_run,
    in_fresh_process,
    in_turns,
    peak_memory,
    print_head,
    print_row,
    show_ratio,
)
from torch import Tensor

from latentae.quantizers import nearest_code

Lookup = Callable[[Tensor, Tensor], Tensor]
OURS = "nearest_code"
# Limits for the differences of a broadcast, N × K × d, and for the package's matrices, about four of N × K.
BROADCAST_BYTES = 1 << 30
PACKAGE_BYTES = 1 << 32


def main() -> None:
    arguments = _parse()
    torch.set_num_threads(arguments.threads)
    device = default_device()
    if arguments.memory_of:
        print(_peak_bytes(arguments.memory_of, _data(arguments, arguments.dims[0], device), device))
        return
    print(describe_run(device))
    spread = f"mean {arguments.mean:g}, deviation {arguments.deviation:g}"
    print(f"{arguments.rows} latents, {arguments.codes} codes, {spread}\n")
    print_head("d", "method", "ms", "ratio to nearest_code (range)", "rows with a farther code")
    for dim in arguments.dims:
        _print_times(dim, _data(arguments, dim, device), arguments.rounds)
    print()
    print_head("d", "method", "peak memory, MB", "of nearest_code's")
    for dim in arguments.dims:
        _print_memory(dim, arguments)


def _parse() -> argparse.Namespace:
    parser = benchmark_parser(__doc__, rounds=5, threads=1)
    parser.add_argument("--rows", type=int, default=16384, help="number of latents")
    parser.add_argument("--codes", type=int, default=1024, help="number of codes")
    parser.add_argument("--dims", type=int, nargs="+", default=[8, 32, 64], help="lengths of a code")
    parser.add_argument("--mean", type=float, default=0.0, help="mean of latents and codes")
    parser.add_argument("--deviation", type=float, default=1.0, help="their standard deviation")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)  # measures this method in this process
    return parser.parse_args()


def _data(arguments: argparse.Namespace, dim: int, device: torch.device) -> list[Tensor]:
    generator = torch.Generator().manual_seed(dim)
    values = [torch.randn(count, dim, generator=generator) for count in (arguments.rows, arguments.codes)]
    return [(arguments.mean + arguments.deviation * each).to(device) for each in values]


def lookup_methods(latents: Tensor, codebook: Tensor) -> dict[str, Lookup]:
    methods: dict[str, Lookup] = {OURS: nearest_code, "cdist, argmin": _cdist}
    matrix_bytes = len(latents) * len(codebook) * latents.element_size()
    if matrix_bytes * latents.shape[1] <= BROADCAST_BYTES:
        methods["broadcast"] = _broadcast
    if matrix_bytes * 4 <= PACKAGE_BYTES and find_spec("vector_quantize_pytorch"):
        methods["vector-quantize-pytorch"] = _package(codebook)
    return methods


def _cdist(latents: Tensor, codebook: Tensor) -> Tensor:
    return torch.cdist(latents, codebook).argmin(dim=1)


def _broadcast(latents: Tensor, codebook: Tensor) -> Tensor:
    return (latents[:, None] - codebook).square().sum(dim=2).argmin(dim=1)


def _package(codebook: Tensor) -> Lookup:
    """The package's quantizer in eval mode. It also gathers the codes, a small part of its work."""
    from vector_quantize_pytorch import VectorQuantize

    num_codes, dim = codebook.shape
    quantizer = VectorQuantize(dim=dim, codebook_size=num_codes).to(codebook.device).eval()
    with torch.no_grad():
        quantizer.codebook = codebook
    return lambda latents, codebook: quantizer(latents[None])[1][0]


@torch.no_grad()
def _print_times(dim: int, data: list[Tensor], rounds: int) -> None:
    methods = lookup_methods(*data)
    calls = {name: lambda method=method: method(*data) for name, method in methods.items()}
    spent = in_turns(calls, rounds, data[0].device)
    nearest = nearest_code(*(values.double() for values in data))
    for name, call in calls.items():
        ratio = "1" if name == OURS else show_ratio(spent[name], spent[OURS])
        wrong = _farther(*data, call(), nearest)
        print_row(dim, name, f"{1e3 * statistics.median(spent[name]):.1f}", ratio, f"{wrong:.3%}")


def _farther(latents: Tensor, codebook: Tensor, indices: Tensor, others: Tensor) -> float:
    """Returns the share of rows whose code at `indices` is farther, in float64, than the one at `others`."""
    squares = [(latents.double() - codebook[chosen].double()).square().sum(1) for chosen in (indices, others)]
    return (squares[0] > squares[1]).double().mean().item()


def _print_memory(dim: int, arguments: argparse.Namespace) -> None:
    problem = [f"--{name}={getattr(arguments, name)}" for name in ("rows", "codes", "threads")]
    methods = lookup_methods(*_data(arguments, dim, torch.device("cpu")))
    peaks = {
        name: in_fresh_process(__file__, *problem, f"--dims={dim}", f"--memory-of={name}") for name in methods
    }
    for name, peak in peaks.items():
        print_row(dim, name, f"{peak / 1e6:.1f}", f"{peak / peaks[OURS]:.1f}")


@torch.no_grad()
def _peak_bytes(name: str, data: list[Tensor], device: torch.device) -> float:
    method = lookup_methods(*data)[name]
    method(data[0][:64], data[1][:64])  # loads what only the first call of a process loads
    return 2**20 * peak_memory(lambda: method(*data), device)


if __name__ == "__main__":
    main()
