"""How large images are, where that decides what becomes of them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch.utils.data import Dataset

from latentae import distributed
from latentae.data import BrokenImageError, ImageSource
from latentae.data.workers import WatchedLoader
from latentae.distributed import on_main
from latentae.files import write_aside

_FILE = "sizes.safetensors"
_IMAGES_AT_A_TIME = 64


class _Sizes(Dataset[list[list[int]]]):
    """``sizes[indices]`` are height and width of some images; 0 and 0 of those that cannot be decoded."""

    def __init__(self, source: ImageSource, channels: int) -> None:
        self.source = source
        self.channels = channels

    def __getitem__(self, indices: Sequence[int]) -> list[list[int]]:
        return [self._size(index) for index in indices]

    def _size(self, index: int) -> list[int]:
        try:
            return list(self.source.load(index, self.channels).shape[:2])
        except BrokenImageError:
            return [0, 0]


def measure_sizes(source: ImageSource, channels: int, *, workers: int, folder: Path) -> NDArray[np.int64]:
    """Height and width [n, 2] of all images, 0 of those that cannot be decoded; every rank must call it.

    Each image is decoded once for it, the ranks sharing them; ``folder`` keeps the result for the next call.
    """
    known = _load(folder / _FILE, len(source))
    agreed = int(distributed.all_reduce_sum(torch.tensor(int(known is not None))).item())
    if known is not None and agreed == distributed.world_size():
        return known
    rank, world_size = distributed.rank(), distributed.world_size()
    own = range(len(source) * rank // world_size, len(source) * (rank + 1) // world_size)
    loader = WatchedLoader(
        _Sizes(source, channels),
        num_workers=workers,
        sampler=[own[start : start + _IMAGES_AT_A_TIME] for start in range(0, len(own), _IMAGES_AT_A_TIME)],
        batch_size=None,
        generator=torch.Generator(),
    )
    measured = [size for sizes in loader for size in sizes]
    tensor = torch.tensor(measured, dtype=torch.int64).reshape(-1, 2)
    sizes = distributed.all_gather_concat(tensor).cpu().numpy()
    on_main(lambda: write_aside(folder / _FILE, save({"sizes": sizes})), f"write to {folder}")
    return sizes


def forget_sizes(folder: Path) -> None:
    """Removes what ``measure_sizes`` keeps."""
    (folder / _FILE).unlink(missing_ok=True)


def _load(file: Path, images: int) -> NDArray[np.int64] | None:
    with contextlib.suppress(OSError, SafetensorError, KeyError):
        sizes: NDArray[np.int64] = load(file.read_bytes())["sizes"]
        return sizes if sizes.shape == (images, 2) else None
    return None
