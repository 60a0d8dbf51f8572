"""Encoding and decoding at the size of Stable Diffusion's autoencoder: number formats and memory orders.

`python benchmarks/bench_inference.py [--size PIXELS] [--rounds N] [--threads N]` prints a table for each of
the two. The variants take turns on the same image and the same random weights; a ratio is the median over the
rounds of stock float32's process time (wall time on a GPU) against the variant's. Errors are against float32,
relative to the root mean square of what it gives.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable

import torch
from machine import commit, hardware
from measuring import in_turns, ratios
from torch import Tensor

from latentae import KLVAE

_LEVELS = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}


def main() -> None:
    arguments = _parse()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = KLVAE(block_out_channels=(128, 256, 512, 512), layers_per_block=2, **_LEVELS).eval().to(device)
    images = torch.rand(arguments.batch, 3, arguments.size, arguments.size, device=device) * 2 - 1
    latents = torch.randn(arguments.batch, 4, arguments.size // 8, arguments.size // 8, device=device)
    models = {
        "float32": model,
        "float32, channels last": copy.deepcopy(model).to(memory_format=torch.channels_last),
        "bfloat16": copy.deepcopy(model).to(torch.bfloat16),
    }
    models["bfloat16, channels last"] = copy.deepcopy(models["bfloat16"]).to(
        memory_format=torch.channels_last
    )
    print(
        f"{_device_name(device)}, {arguments.threads} threads, torch {torch.__version__}, commit {commit()}."
    )
    print(f"{arguments.batch} x {arguments.size}x{arguments.size} pixels, {arguments.rounds} rounds\n")
    encode = {name: _call(m, lambda m, x: m.encode(x).latents, images) for name, m in models.items()}
    decode = {name: _call(m, lambda m, x: m.decode(x).sample, latents) for name, m in models.items()}
    _table("encode", encode, arguments.rounds, device)
    _table("decode", decode, arguments.rounds, device)


def _call(model: KLVAE, function: Callable[[KLVAE, Tensor], Tensor], inputs: Tensor) -> Callable[[], Tensor]:
    weight = model.encoder.conv_in.weight
    last = weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    order = torch.channels_last if last else torch.contiguous_format
    prepared = inputs.to(weight.dtype).contiguous(memory_format=order)

    @torch.inference_mode()
    def call() -> Tensor:
        return function(model, prepared)

    return call


def _table(name: str, calls: dict[str, Callable[[], Tensor]], rounds: int, device: torch.device) -> None:
    expected = calls["float32"]()
    measured = in_turns(calls, rounds, device)
    print(f"| {name} | s | float32 / it | error |\n| --- | --- | --- | --- |")
    for variant, spent in measured.items():
        middle, low, high = ratios(measured["float32"], spent)
        error = (calls[variant]().float() - expected).norm() / expected.norm()
        seconds = sorted(spent)[len(spent) // 2]
        print(f"| {variant} | {seconds:.2f} | {middle:.2f} ({low:.2f} to {high:.2f}) | {error:.1e} |")
    print()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else hardware()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
