"""Compares every way to read data with torchvision's ImageFolder, and measures what a resume costs.

The images are those of a folder, or crops of the built-in photographs as JPEG. The same ones are packed into
tar and parquet files. All loaders deliver batches of equal crops in float32, and take turns. The ratio is the
median over the rounds: of process time without workers, of wall time with workers, which are processes of
their own. Each process has one thread.
"""

from __future__ import annotations

import argparse
import io
import itertools
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import PIL
import torch
import torchvision.datasets
from measuring import benchmark_parser, describe_run, print_head, print_row, show_ratio
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from latentae.data import ImageDataset, ImageStream, RandomCrop, open_sources, open_streams, training_loader
from latentae.data.photos import WindowSource, training_photos

_SHARDS = 8


def main() -> None:
    arguments = _parse()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as work:
        root = Path(work)
        os.environ["LATENTAE_CACHE"] = str(root / "cache")
        datasets.config.HF_DATASETS_CACHE = root / "datasets"
        files = collect_images(arguments.images, arguments.count, root / "images/all")
        _write_tars(files, root / "tars")
        _write_parquet(files, root / "parquet")
        kilobytes = sum(path.stat().st_size for path in files) / len(files) / 1024
        print(f"{describe_run()} {os.cpu_count()} cores, Pillow {PIL.__version__}.")
        print(
            f"{len(files)} files of {kilobytes:.0f} kB, crops of {arguments.size} pixels, batches of "
            f"{arguments.batch_size}\n"
        )
        print_head("workers", "torchvision ImageFolder", "ours", "images/s", "ratio (range)")
        for workers in arguments.workers:
            _compare(root, arguments, workers)
        print("\nSeconds of process time to the first batch:\n")
        print_head("stream", "at the start", "after 20.5 epochs", "the same, lengths of shards noted")
        for name in ("tars", "parquet"):
            notes = root / f"notes_{name}"
            seconds = [_first_batch(root / name, notes, start) for start in (0.0, 20.5)]
            notes.mkdir()
            _first_batch(root / name, notes, 20.5)
            seconds.append(_first_batch(root / name, notes, 20.5))
            print_row(name, *(f"{value:.2f}" for value in seconds))


def _first_batch(folder: Path, notes: Path, epochs: float) -> float:
    """Returns the process time until the first batch of a stream that resumes after some epochs."""
    opened = open_streams(str(folder), max_validation=1, notes=notes)
    images = sum(len(list(opened.train.read(shard))) for shard in range(len(opened.train)))
    opened = open_streams(str(folder), max_validation=1, notes=notes)  # which has not read any shard yet
    stream = ImageStream(opened.train, RandomCrop(64), 3, held_out=opened.held_out)
    started = time.process_time()
    next(iter(training_loader(stream, batch_size=16, start_batch=int(epochs * images / 16))))
    return time.process_time() - started


def _compare(root: Path, arguments: argparse.Namespace, workers: int) -> None:
    ours = {
        "folder": _random_access(root / "images"),
        "tar files": _random_access(root / "tars"),
        "tar files, streaming": _stream(root / "tars"),
        "parquet": _random_access(root / "parquet"),
        "parquet, streaming": _stream(root / "parquet"),
    }
    makers: dict[str, Callable[[], Any]] = {"torchvision": lambda: _peer(root / "images", arguments, workers)}
    for name, make in ours.items():
        makers[name] = lambda make=make: training_loader(
            make(arguments.size), batch_size=arguments.batch_size, num_workers=workers
        )
    speeds: dict[str, list[float]] = {name: [] for name in makers}
    for _ in range(arguments.rounds):
        for name, make in makers.items():
            clock = time.perf_counter if workers else time.process_time
            speeds[name].append(
                images_per_second(iter(make()), arguments.batch_size, arguments.seconds, clock)
            )
    for name in ours:
        middle, own = (f"{statistics.median(speeds[each]):.0f}" for each in ("torchvision", name))
        print_row(workers, middle, name, own, show_ratio(speeds[name], speeds["torchvision"]))


def images_per_second(
    batches: Iterator[Any], batch_size: int, seconds: float, clock: Callable[[], float]
) -> float:
    """Returns the speed over some seconds, after a few batches that are not counted."""
    for _ in range(4):
        next(batches)
    started, count = clock(), 0
    while clock() - started < seconds:
        next(batches)
        count += batch_size
    return count / (clock() - started)


def _random_access(folder: Path) -> Callable[[int], ImageDataset]:
    source = open_sources(str(folder)).train
    return lambda size: ImageDataset(source, RandomCrop(size, flip=True), 3)


def _stream(folder: Path) -> Callable[[int], ImageStream]:
    opened = open_streams(str(folder), max_validation=1)
    return lambda size: ImageStream(opened.train, RandomCrop(size, flip=True), 3, held_out=opened.held_out)


def _peer(folder: Path, arguments: argparse.Namespace, workers: int) -> Iterator[Any]:
    """Returns what many trainers use: an endless loader of ImageFolder with torchvision's transforms."""
    transform = v2.Compose(
        [
            v2.Resize(arguments.size, interpolation=v2.InterpolationMode.BICUBIC),
            v2.RandomCrop(arguments.size),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    loader = DataLoader(
        torchvision.datasets.ImageFolder(str(folder), transform),
        batch_size=arguments.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    return itertools.chain.from_iterable(itertools.repeat(loader))


def collect_images(given: str | None, count: int, folder: Path) -> list[Path]:
    """Links or draws up to `count` image files into a folder."""
    folder.mkdir(parents=True)
    if given is None:
        windows = WindowSource(training_photos(), window=256, stride=48)
        for number in range(min(count, len(windows))):
            index = number * len(windows) // min(count, len(windows))
            Image.fromarray(windows.load(index, 3)).save(folder / f"{number:05}.jpg", quality=92)
    else:
        found = sorted(
            path for path in Path(given).rglob("*") if path.suffix.lower() in (".jpg", ".png", ".jpeg")
        )
        for number, path in enumerate(found[:count]):
            (folder / f"{number:05}{path.suffix.lower()}").symlink_to(path.resolve())
    return sorted(folder.iterdir())


def _write_tars(files: list[Path], folder: Path) -> None:
    folder.mkdir()
    for shard in range(_SHARDS):
        with tarfile.open(folder / f"{shard:03}.tar", "w", dereference=True) as archive:
            for path in files[shard::_SHARDS]:
                archive.add(path, path.name)


def _write_parquet(files: list[Path], folder: Path) -> None:
    folder.mkdir()
    features = datasets.Features({"image": datasets.Image()})
    for shard in range(_SHARDS):
        rows = [{"bytes": path.read_bytes(), "path": path.name} for path in files[shard::_SHARDS]]
        table = datasets.Dataset.from_dict({"image": rows}, features=features)
        with io.FileIO(folder / f"{shard:03}.parquet", "w") as stream:
            table.to_parquet(stream, batch_size=100)


def _parse() -> argparse.Namespace:
    parser = benchmark_parser(__doc__, rounds=5)
    parser.add_argument("--images", help="a folder of JPEG or PNG files; without it, crops of photographs")
    parser.add_argument("--count", type=int, default=1200, help="most images")
    parser.add_argument("--size", type=int, default=128, help="side of the crops in pixels")
    parser.add_argument("--batch-size", type=int, default=16, help="images per batch")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="loading processes")
    parser.add_argument("--seconds", type=float, default=3.0, help="measured per loader and round")
    return parser.parse_args()


if __name__ == "__main__":
    main()
