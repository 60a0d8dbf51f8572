"""Compares caching latents with running the bare encoder, and the number formats latents are stored in.

The first table: the bare encoder is `model.encode` on batches in memory. The cache decodes the images,
encodes them, and writes and flushes the shards and their index. Both take turns. The ratio is the median over
the rounds, of process time on a CPU without workers, else of wall time. The second table, for each dtype:
bytes per image, the largest difference from the encoder's latents, and the PSNR between images decoded from
either.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import (
    benchmark_parser,
    default_device,
    describe_run,
    print_head,
    print_row,
    show_ratio,
)
from torch import Tensor

from latentae import LatentDataset, load_autoencoder
from latentae.data import CenterCrop, ImageSource, open_source, take_evenly
from latentae.latents.cache import encode_dataset
from latentae.latents.cache.planning import DTYPES


def main() -> None:
    arguments = _parse()
    torch.set_num_threads(arguments.threads)
    device = default_device()
    model: Any = load_autoencoder(arguments.model).to(device)
    source = take_evenly(open_source(arguments.data, split=arguments.split), arguments.limit)
    crop = CenterCrop(arguments.size)
    images = torch.stack([crop(source.load(index, 3)) for index in range(len(source))])
    print(
        f"{describe_run(device)}\n"
        f"{len(images)} images of {arguments.size} pixels, batches of {arguments.batch_size}\n"
    )
    _compare(model, source, images, arguments)
    _storage(model, source, images, arguments)


def _compare(model: Any, source: ImageSource, images: Tensor, arguments: argparse.Namespace) -> None:
    # Process time excludes other programs, but also the work of workers and of a GPU.
    alone = model.device.type == "cpu" and not arguments.workers
    clock = time.process_time if alone else time.perf_counter
    bare, cached = [], []
    for _ in range(arguments.rounds + 1):  # the first round warms up
        bare.append(len(images) / _bare(model, images, arguments.batch_size, clock))
        with tempfile.TemporaryDirectory() as folder:
            started = clock()
            _encode(model, source, folder, arguments)
            cached.append(len(images) / (clock() - started))
    print_head("bare encoder, images/s", "cache, images/s", "ratio (range)")
    speeds = [f"{statistics.median(speed[1:]):.2f}" for speed in (bare, cached)]
    print_row(*speeds, show_ratio(cached[1:], bare[1:]))
    print()


@torch.no_grad()
def _bare(model: Any, images: Tensor, batch_size: int, clock: Callable[[], float]) -> float:
    started = clock()
    for batch in images.split(batch_size):
        model.encode(batch.to(model.device))
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - started


@torch.no_grad()
def _storage(model: Any, source: ImageSource, images: Tensor, arguments: argparse.Namespace) -> None:
    batches = images.split(arguments.batch_size)
    exact = torch.cat([model.encode(batch.to(model.device)).latents.cpu() for batch in batches])
    print_head("dtype", "bytes per image", "largest error", "relative to std", "PSNR of decoded images, dB")
    for dtype in DTYPES:
        with tempfile.TemporaryDirectory() as folder:
            report = _encode(model, source, folder, arguments, dtype=dtype)
            dataset = LatentDataset(folder, sample=False, normalised=False)
            stored = torch.stack([dataset[index]["latents"] for index in range(len(dataset))])
        error = (stored - exact).abs().max().item()
        squared = []
        for own, other in zip(
            stored.split(arguments.batch_size), exact.split(arguments.batch_size), strict=True
        ):
            difference = (
                model.decode(own.to(model.device)).sample - model.decode(other.to(model.device)).sample
            )
            squared.append(difference.double().square().flatten(1).mean(1).cpu())
        mean = torch.cat(squared).mean().item()
        psnr = f"{10 * torch.tensor(4 / mean).log10().item():.1f}" if mean else "exact"
        std = exact.std().item()
        print_row(dtype, f"{report.bytes_per_image:,.0f}", f"{error:.1e}", f"{error / std:.1e}", psnr)


def _encode(
    model: Any, source: ImageSource, folder: str, arguments: argparse.Namespace, **options: Any
) -> Any:
    return encode_dataset(
        model,
        source,
        Path(folder),
        image_size=arguments.size,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        **options,
    )


def _parse() -> argparse.Namespace:
    parser = benchmark_parser(__doc__, rounds=5, threads=1)
    parser.add_argument("model", help="a model, as load_autoencoder opens it")
    parser.add_argument("--data", default="photos", help="images, as open_source takes them")
    parser.add_argument("--split", default="train", help="split of the data")
    parser.add_argument("--size", type=int, default=128, help="side of the images in pixels")
    parser.add_argument("--limit", type=int, default=64, help="number of images")
    parser.add_argument("--batch-size", type=int, default=16, help="images per batch")
    parser.add_argument("--workers", type=int, default=0, help="decoding processes of the cache")
    return parser.parse_args()


if __name__ == "__main__":
    main()
