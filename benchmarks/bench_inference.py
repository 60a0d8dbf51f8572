"""Compares number formats and memory orders for encoding and decoding, at the size of Stable Diffusion's VAE.

The variants take turns on the same image and the same random weights. A ratio is the median over the rounds
of the time of stock float32 (process time, wall time on a GPU) over that of the variant. Errors are against
float32, relative to the root mean square of its output.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from measuring import (
    benchmark_parser,
    default_device,
    describe_run,
    in_turns,
    print_head,
    print_row,
    show_ratio,
)
from torch import Tensor

from latentae import KLVAE

_LEVELS = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}


def main() -> None:
    parser = benchmark_parser(__doc__, rounds=5, threads=1)
    parser.add_argument("--size", type=int, default=256, help="side of the images in pixels")
    parser.add_argument("--batch", type=int, default=1, help="number of images")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    device = default_device()
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
    print(describe_run(device))
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
    print_head(name, "s", "float32 / it", "error")
    for variant, spent in measured.items():
        error = (calls[variant]().float() - expected).norm() / expected.norm()
        seconds = f"{sorted(spent)[len(spent) // 2]:.2f}"
        print_row(variant, seconds, show_ratio(measured["float32"], spent), f"{error:.1e}")
    print()


if __name__ == "__main__":
    main()
