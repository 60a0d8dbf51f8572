"""Compares number formats and memory orders for encoding and decoding, at the size of Stable Diffusion's VAE.

The variants take turns on the same image and the same random weights. A ratio is the median over the rounds
of the time of stock float32 (process time, wall time on a GPU) over that of the variant. Errors are against
float32, relative to the root mean square of its output.

With --rewrites: what `optimize()` gains over diffusers' AutoencoderKL, and each rewritten operation over
torch's, in the same number format and memory order. Here errors are against the stock float32 model, and of
operations against float64.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
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


def main() -> None:
    parser = benchmark_parser(__doc__, rounds=5, threads=1)
    parser.add_argument("--size", type=int, default=256, help="side of the images in pixels")
    parser.add_argument("--batch", type=int, default=1, help="number of images")
    parser.add_argument("--rewrites", action="store_true", help="measure `optimize()` instead")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    device = default_device()
    if arguments.rewrites:
        print(describe_run(device))
        print(f"{arguments.batch} x {arguments.size}x{arguments.size} pixels, {arguments.rounds} rounds\n")
        _operations_table(arguments.size, arguments.rounds, device)
        _optimized_table(arguments.size, arguments.batch, arguments.rounds, device)
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


_FORMATS = {
    f"{dtype}{order}".removeprefix("torch."): (dtype, last)
    for dtype in (torch.float32, torch.bfloat16)
    for order, last in (("", torch.contiguous_format), (", channels last", torch.channels_last))
}


def _optimized_table(size: int, batch: int, rounds: int, device: torch.device) -> None:
    """Prints what `optimize()` gains over diffusers' class, decoding and encoding."""
    settings = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, **_LEVELS}
    stock = AutoencoderKL(**settings).eval()
    ours = KLVAE(**settings).eval()
    ours.load_state_dict(stock.state_dict())
    ours.optimize()
    latents = torch.randn(batch, 4, size // 8, size // 8, device=device)
    images = torch.rand(batch, 3, size, size, device=device) * 2 - 1
    passes = {
        "decode": (lambda m, x: m.decode(x).sample, latents),
        "encode": (lambda m, x: m.encode(x).latent_dist.mode(), images),
    }
    for name, (function, inputs) in passes.items():
        print_head(name, "diffusers, s", "diffusers / optimised", "error, diffusers", "error, optimised")
        exact: Tensor | None = None
        for kind, (dtype, order) in _FORMATS.items():
            models = {"stock": stock, "ours": ours}
            calls = {
                which: _call(copy.deepcopy(model).to(device, dtype).to(memory_format=order), function, inputs)
                for which, model in models.items()
            }
            if exact is None:
                exact = calls["stock"]().float()
            errors = [f"{_error(calls[which](), exact):.1e}" for which in models]
            measured = in_turns(calls, rounds, device)
            seconds = f"{sorted(measured['stock'])[rounds // 2]:.2f}"
            print_row(kind, seconds, show_ratio(measured["stock"], measured["ours"]), *errors)
        print()


def _operations_table(size: int, rounds: int, device: torch.device) -> None:
    """Prints what each rewritten operation gains over torch's, in channels last."""
    print_head(
        "operation", "channels", "pixels", "dtype", "torch, ms", "torch / it", "error, torch", "error, it"
    )
    for channels, side in ((128, size), (256, size // 2), (512, size // 4), (512, size // 8)):
        for dtype in (torch.float32, torch.bfloat16):
            inputs = torch.randn(1, channels, side, side).to(device, dtype)
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            weight = (torch.randn(channels, channels, 3, 3) / (3 * channels**0.5)).to(device, dtype)
            weight, bias = (
                weight.contiguous(memory_format=torch.channels_last),
                torch.randn(channels).to(dtype),
            )
            transformed = winograd_weight(weight.float()).to(dtype)
            calls: dict[str, Callable[[], Tensor]] = {
                "torch": lambda x=inputs, w=weight, b=bias: F.conv2d(x, w, b, padding=1),
                "Winograd": lambda x=inputs, w=transformed, b=bias: winograd_conv(x, w, b),
            }
            exact = F.conv2d(inputs.double(), weight.double(), bias.double(), padding=1)
            _operation_rows(calls, exact, (channels, f"{side}x{side}", dtype), rounds, device)
            if side > size // 2:
                continue
            kernel = doubling_kernel(weight.float()).to(dtype).contiguous(memory_format=torch.channels_last)
            products = tuple(matrix.to(dtype) for matrix in doubling_products(weight.float()))
            calls = {
                "torch": lambda x=inputs, w=weight, b=bias: F.conv2d(_doubled(x), w, b, padding=1),
                "doubling, transposed convolution": lambda x=inputs, w=kernel, b=bias: F.conv_transpose2d(
                    x, w, b, stride=2, padding=1
                ),
                "doubling, nine products": lambda x=inputs, m=products, b=bias: doubled_by_products(x, m, b),
            }
            exact = F.conv2d(_doubled(inputs.double()), weight.double(), bias.double(), padding=1)
            _operation_rows(calls, exact, (channels, f"{side}x{side}", dtype), rounds, device)
    print()


def _operation_rows(
    calls: dict[str, Callable[[], Tensor]],
    exact: Tensor,
    shape: tuple[object, ...],
    rounds: int,
    device: torch.device,
) -> None:
    with torch.inference_mode():
        errors = {name: _error(call(), exact) for name, call in calls.items()}
        measured = in_turns(calls, rounds, device)
    milliseconds = f"{sorted(measured['torch'])[rounds // 2] * 1000:.0f}"
    for name in list(calls)[1:]:
        ratio = show_ratio(measured["torch"], measured[name])
        *sizes, dtype = shape
        kind = str(dtype).removeprefix("torch.")
        print_row(name, *sizes, kind, milliseconds, ratio, f"{errors['torch']:.1e}", f"{errors[name]:.1e}")


def _doubled(images: Tensor) -> Tensor:
    return F.interpolate(images, scale_factor=2.0, mode="nearest")


def _error(found: Tensor, exact: Tensor) -> float:
    return float((found.to(exact.dtype) - exact).norm() / exact.norm())


if __name__ == "__main__":
    main()
