"""Compares number formats and memory orders for encoding and decoding, at the size of Stable Diffusion's VAE.

The variants take turns on the same image and the same random weights. A ratio is the median over the rounds
of the time of stock float32 (process time, wall time on a GPU) over that of the variant. Errors are against
float32, relative to the root mean square of its output.

With --rewrites: what `optimize()` gains over diffusers' AutoencoderKL, and each rewritten operation over
torch's, in the same number format and memory order. Here errors are against the stock float32 model, and of
operations against float64.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
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
from latentae.models.lean.doubling import doubled_by_products, doubling_kernel, doubling_products
from latentae.winograd import winograd_conv, winograd_weight

_LEVELS = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}


_FORMATS = {
    f"{dtype}{order}".removeprefix("torch."): (dtype, last)
    for dtype in (torch.float32, torch.bfloat16)
    for order, last in (("", torch.contiguous_format), (", channels last", torch.channels_last))
}
_PASSES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "decode": lambda model, latents: model.decode(latents).sample,
    "encode": lambda model, images: model.encode(images).latent_dist.mode(),
}


def main() -> None:
    parser = benchmark_parser(__doc__, rounds=5, threads=1)
    parser.add_argument("--size", type=int, default=256, help="side of the images in pixels")
    parser.add_argument("--batch", type=int, default=1, help="number of images")
    parser.add_argument(
        "--rewrites",
        nargs="+",
        choices=["operations", *_PASSES],
        help="measure `optimize()` instead: each operation, decoding, encoding",
    )
    parser.add_argument(
        "--formats", nargs="+", default=list(_FORMATS), choices=list(_FORMATS), help="for --rewrites"
    )
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    device = default_device()
    if arguments.rewrites:
        print(describe_run(device))
        print(f"{arguments.batch} x {arguments.size}x{arguments.size} pixels, {arguments.rounds} rounds\n")
        if "operations" in arguments.rewrites:
            _operations_table(arguments.size, arguments.rounds, device)
        for name in _PASSES:
            if name in arguments.rewrites:
                _optimized_table(name, arguments, device)
        return
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


def _call(model: Any, function: Callable[[Any, Tensor], Tensor], inputs: Tensor) -> Callable[[], Tensor]:
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


def _optimized_table(name: str, arguments: argparse.Namespace, device: torch.device) -> None:
    """Prints what `optimize()` gains over diffusers' class in a pass, by number format and memory order."""
    size, rounds = arguments.size, arguments.rounds
    ours = KLVAE(block_out_channels=(128, 256, 512, 512), layers_per_block=2, **_LEVELS).eval()
    stock = ours.to_diffusers()
    ours.optimize()
    latents = torch.randn(arguments.batch, 4, size // 8, size // 8, device=device)
    inputs = (
        latents if name == "decode" else torch.rand(arguments.batch, 3, size, size, device=device) * 2 - 1
    )
    print_head(name, "diffusers, s", "diffusers / optimised", "error, diffusers", "error, optimised")
    exact: Tensor | None = None
    for kind in arguments.formats:
        dtype, order = _FORMATS[kind]
        outputs: dict[str, Tensor] = {}
        calls = {}
        for which, model in (("stock", stock), ("ours", ours)):
            converted = copy.deepcopy(model).to(device, dtype).to(memory_format=order)
            call = _call(converted, _PASSES[name], inputs)
            calls[which] = lambda which=which, call=call, outputs=outputs: outputs.update({which: call()})
        measured = in_turns(calls, rounds, device)
        exact = outputs["stock"].float() if exact is None else exact
        errors = [f"{_error(outputs[which].float(), exact):.1e}" for which in calls]
        seconds = f"{sorted(measured['stock'])[rounds // 2]:.2f}"
        print_row(kind, seconds, show_ratio(measured["stock"], measured["ours"]), *errors)
    print(f"\nThe errors are against the first row's diffusers model, in {arguments.formats[0]}.\n")


def _operations_table(size: int, rounds: int, device: torch.device) -> None:
    """Prints what each rewritten operation gains over torch's, in channels last."""
    print_head(
        "operation", "channels", "pixels", "dtype", "torch, ms", "torch / it", "error, torch", "error, it"
    )
    last = {"memory_format": torch.channels_last}
    for channels, side in ((64, size), (128, size), (256, size // 2), (512, size // 4), (512, size // 8)):
        for dtype in (torch.float32, torch.bfloat16):
            images = torch.randn(1, channels, side, side).to(device, dtype).contiguous(**last)
            weight = (torch.randn(channels, channels, 3, 3) / (3 * channels**0.5)).to(device, dtype)
            w, b = weight.contiguous(**last), torch.randn(channels, device=device).to(dtype)
            convs: dict[str, Callable[[Tensor], Tensor]] = {
                "torch": lambda x, w=w, b=b: F.conv2d(x, w, b, padding=1),
                "Winograd": lambda x, w=w, b=b: winograd_conv(x, winograd_weight(w), b),
            }
            exact = lambda x, w=w, b=b: F.conv2d(x.double(), w.double(), b.double(), padding=1)  # noqa: E731
            _operation_rows(convs, exact, images, rounds, device)
            doublings: dict[str, Callable[[Tensor], Tensor]] = {
                "torch": lambda x, f=convs["torch"]: f(_doubled(x)),
                "doubling, transposed": lambda x, w=w, b=b: F.conv_transpose2d(
                    x, doubling_kernel(w), b, stride=2, padding=1
                ),
                "doubling, nine products": lambda x, w=w, b=b: doubled_by_products(
                    x, doubling_products(w), b
                ),
            }
            small = images[..., : side // 2, : side // 2].contiguous(**last)
            _operation_rows(doublings, lambda x, f=exact: f(_doubled(x)), small, rounds, device)
    print()


@torch.inference_mode()
def _operation_rows(
    functions: dict[str, Callable[[Tensor], Tensor]],
    exact: Callable[[Tensor], Tensor],
    images: Tensor,
    rounds: int,
    device: torch.device,
) -> None:
    """Prints the functions' time against torch's, and their errors on a part of the images."""
    part = images[..., :32, :32].contiguous(memory_format=torch.channels_last)
    errors = {name: f"{_error(function(part), exact(part)):.1e}" for name, function in functions.items()}
    calls = {name: lambda f=function: f(images) for name, function in functions.items()}
    measured = in_turns(calls, rounds, device)
    _, channels, height, width = images.shape
    shape = (channels, f"{height}x{width}", str(images.dtype).removeprefix("torch."))
    milliseconds = f"{sorted(measured['torch'])[rounds // 2] * 1000:.0f}"
    for name in list(functions)[1:]:
        ratio = show_ratio(measured["torch"], measured[name])
        print_row(name, *shape, milliseconds, ratio, errors["torch"], errors[name])


def _doubled(images: Tensor) -> Tensor:
    return F.interpolate(images, scale_factor=2.0, mode="nearest")


def _error(found: Tensor, exact: Tensor) -> float:
    return float((found.to(exact.dtype) - exact).norm() / exact.norm())


if __name__ == "__main__":
    main()
