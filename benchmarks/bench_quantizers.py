"""Trains one VQ-VAE per quantizer, with the same encoder and decoder on the same images for the same steps.

Each has a downsampling factor of 8 and about 1,024 codes per position. Usage and perplexity are over all
training images, the other numbers over the validation images.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from measuring import benchmark_parser, describe_run, print_head, print_row
from torch import Tensor

from latentae import load_autoencoder
from latentae.config import load_config
from latentae.data import CenterCrop, ImageDataset, open_source, validation_loader
from latentae.evaluation.rate import CodeMeter
from latentae.training.trainer import Trainer

_REVIVED = "num_codes: 1024, init: data, revive_after: 20"
QUANTIZERS = {
    "vector, as of 2017": (4, "{type: vector, num_codes: 1024, init: uniform, revive_after: null}"),
    "vector": (4, f"{{type: vector, {_REVIVED}}}"),
    "vector, rotation trick": (4, f"{{type: vector, gradient: rotation, {_REVIVED}}}"),
    "ema": (4, f"{{type: ema, {_REVIVED}}}"),
    "cosine, 8 dimensions": (8, f"{{type: cosine, code_dim: 8, {_REVIVED}}}"),
    "simvq": (4, "{type: simvq, num_codes: 1024, init: data, revive_after: null}"),
    "simvq, revived": (4, f"{{type: simvq, {_REVIVED}}}"),
    "simvq, as published": (4, "{type: simvq, num_codes: 1024, init: normal, revive_after: null}"),
    "ibq": (4, "{type: ibq, num_codes: 1024}"),
    "fsq 8·8·4·4": (4, "{type: fsq, levels: [8, 8, 4, 4]}"),
    "fsq 8·8·4·4, as published": (4, "{type: fsq, levels: [8, 8, 4, 4], init: none, spread_weight: 0}"),
    "fsq 8·5·5·5": (4, "{type: fsq, levels: [8, 5, 5, 5]}"),
    "lfq, 10 bits": (10, "{type: lfq, bits: 10}"),
    "bsq, 10 bits": (10, "{type: bsq, bits: 10}"),
    "residual, 2 x ema 32": (4, "{type: residual, depth: 2, member: {type: ema, num_codes: 32, init: data}}"),
    "grouped, 2 x ema 32": (4, "{type: grouped, groups: 2, member: {type: ema, num_codes: 32, init: data}}"),
}


def main() -> None:
    arguments = _parse()
    print(
        f"{describe_run()}\n\n{arguments.steps} steps of {arguments.batch_size} images, {arguments.size} px, "
        f"widths {arguments.widths}, {arguments.threads} thread(s), {arguments.data}\n"
    )
    print_head(
        *("quantizer", "PSNR, dB", "SSIM", "LPIPS (alex)", "bits/image", "entropy"),
        *("codes used", "perplexity", "s"),
    )
    for name in arguments.only or QUANTIZERS:
        with tempfile.TemporaryDirectory() as folder:
            row = _run(name, Path(folder) / "run", arguments)
        print_row(
            name,
            f"{row['psnr']:.2f}",
            f"{row['ssim']:.3f}",
            f"{row['lpips']:.3f}",
            f"{row['bits']:.0f}",
            f"{row['entropy']:.0f}",
            f"{row['usage']:.1%}",
            f"{row['perplexity']:.0f}",
            f"{row['seconds']:.0f}",
        )


def _run(name: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    channels, quantizer = QUANTIZERS[name]
    config = load_config(
        "vq_vae",
        [
            "--config",
            "quickstart_vq",
            f"output_dir={folder}",
            f"max_steps={arguments.steps}",
            f"batch_size={arguments.batch_size}",
            f"data.name={arguments.data}",
            f"data.image_size={arguments.size}",
            "data.downscale=null",
            f"model.block_out_channels=[{arguments.widths}]",
            f"model.latent_channels={channels}",
            f"model.quantizer={quantizer}",
            f"cpu_threads={arguments.threads}",
            "trackers=[]",
            f"log_every={arguments.steps}",
            f"sample_every={arguments.steps}",
            f"checkpoint_every={arguments.steps}",
            "data.check_images=0",
        ],
    )
    AcceleratorState._reset_state(reset_partial_state=True)
    started = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for the table
        Trainer(config).fit()
    seconds = time.perf_counter() - started
    summary = json.loads((folder / "summary.json").read_text())
    return {**summary, **_codes(folder / "model", arguments), "seconds": seconds}


@torch.no_grad()
def _codes(model_folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Measures which codes the training images use, and how often."""
    model = load_autoencoder(model_folder)
    source = open_source(arguments.data, split="train")
    images = ImageDataset(source, CenterCrop(arguments.size, None), channels=3)
    meter: CodeMeter | None = None
    for batch in validation_loader(images, batch_size=64):
        indices: Tensor = model.encode_indices(batch["images"])
        depth = 1 if indices.ndim == 3 else indices.shape[1]
        meter = meter or CodeMeter(model.quantize.num_codes, depth)
        meter.add(indices, arguments.size, arguments.size)
    assert meter is not None
    rate, pixels = meter.result(), arguments.size**2
    return {
        "bits": rate.bits_per_pixel * pixels,
        "entropy": rate.entropy_bits_per_pixel * pixels,
        "usage": rate.codebook_usage,
        "perplexity": rate.codebook_perplexity,
    }


def _parse() -> argparse.Namespace:
    parser = benchmark_parser(__doc__, threads=1)
    parser.add_argument("data", nargs="?", default="photos", help="images to train on")
    parser.add_argument("--steps", type=int, default=600, help="training steps of each model")
    parser.add_argument("--batch-size", type=int, default=16, help="images per step")
    parser.add_argument("--size", type=int, default=64, help="side of the images in pixels")
    parser.add_argument("--widths", default="32, 32, 64, 96", help="block_out_channels, four multiples of 16")
    parser.add_argument("--only", action="append", choices=QUANTIZERS, help="one row; may be repeated")
    return parser.parse_args()


if __name__ == "__main__":
    main()
