"""Compares decoding without tiles, in diffusers' blended tiles, and in strips, at Stable Diffusion's size.

Each is measured in a process of its own, on the same latents and the same random weights. Time is process
time on a CPU and wall time on a GPU, of one decode. The peak is the memory beyond weights and latents. The
error is the largest difference from the decode without tiles, of images that are about as large as [-1, 1];
the PSNR says the same in dB. Where the decode without tiles is left out, errors are against the strips.
"""

from __future__ import annotations

import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from measuring import (
    benchmark_parser,
    default_device,
    describe_run,
    in_fresh_process,
    peak_memory,
    print_head,
    print_row,
    seconds,
)
from torch import Tensor

from latentae import KLVAE

_LEVELS = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
_SETTINGS: dict[str, Any] = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, **_LEVELS}
_WITHOUT, _BLENDED = "without tiles", "diffusers' tiles"
_STRIPS: dict[str, dict[str, Any]] = {
    "strips": {},
    "strips, maps in bfloat16": {"storage_dtype": torch.bfloat16},
    "strips, maps on the CPU": {"offload": True},
}
_VARIANTS = (_WITHOUT, _BLENDED, *_STRIPS)


def main() -> None:
    parser = benchmark_parser(__doc__, threads=1)
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024], help="sides of the images")
    parser.add_argument("--variants", nargs="+", default=list(_VARIANTS[:4]), choices=_VARIANTS)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--measure", nargs=3, metavar=("VARIANT", "SIZE", "FILE"), help="for this script")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.measure is not None:
        variant, size, path = arguments.measure
        print(_measure(variant, int(size), getattr(torch, arguments.dtype), Path(path)))
        return
    print(describe_run(default_device()))
    print(f"{arguments.dtype}, one image, 4 x n/8 x n/8 latents\n")
    print_head("n", "decode", "s", "of the first", "peak, MiB", "largest error", "PSNR, dB")
    for size in arguments.sizes:
        _rows(size, arguments.variants, ["--threads", arguments.threads, "--dtype", arguments.dtype])


def _rows(size: int, variants: list[str], options: list[object]) -> None:
    """Prints a row for each variant; errors and time are against the first."""
    with tempfile.TemporaryDirectory() as folder:
        first: dict[str, Any] | None = None
        for variant in variants:
            path = Path(folder, "measured.pt")
            peak = in_fresh_process(__file__, *options, "--measure", variant, size, path)
            measured = torch.load(path)
            first = first or measured
            ratio = f"{measured['seconds'] / first['seconds']:.2f}"
            errors = _errors(measured["image"], first["image"])
            print_row(size, variant, f"{measured['seconds']:.1f}", ratio, f"{peak:.0f}", *errors)


def _errors(image: Tensor, expected: Tensor) -> tuple[str, str]:
    """Returns the largest difference, and the PSNR for a range of 2."""
    difference = (image - expected).double()
    squared = float(difference.square().mean())
    ratio = "same" if squared == 0 else f"{10 * math.log10(4 / squared):.1f}"
    return f"{float(difference.abs().max()):.1e}", ratio


@torch.inference_mode()
def _measure(variant: str, size: int, dtype: torch.dtype, path: Path) -> float:
    """Decodes once, writes image and seconds to a file, and returns the peak in MiB."""
    torch.manual_seed(0)
    device = default_device()
    model: Any = KLVAE(**_SETTINGS)
    if variant == _BLENDED:
        stock = AutoencoderKL(**_SETTINGS, sample_size=512)
        stock.load_state_dict(model.state_dict())
        model = stock
        model.enable_tiling()
    model = model.eval().to(device, dtype)
    latents = torch.randn(1, 4, size // 8, size // 8, generator=torch.Generator().manual_seed(1))
    latents = latents.to(device, dtype)
    model.decode(latents[..., :8, :8])
    if variant in _STRIPS:
        # As much as strips of 256 MiB need: the estimate without tiles is above that at every size.
        maps = 2 * 128 * size**2 * latents.element_size()
        model.enable_tiling(memory=maps + 3 * 2**27, **_STRIPS[variant])
    images: list[Tensor] = []
    spent: list[float] = []

    def decode() -> None:
        spent.append(seconds(lambda: images.append(model.decode(latents).sample), device))

    peak = peak_memory(decode, device)
    torch.save({"image": images[0].float().cpu(), "seconds": spent[0]}, path)
    return peak


if __name__ == "__main__":
    sys.exit(main())
