"""Loaders whose batches depend on the seed and the step alone, however many ranks and workers there are."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler

from latentae.data.batches import Batch, StreamBatches, batch_resolution, collate, collate_readable
from latentae.data.dataset import ImageDataset
from latentae.data.samples import Sample
from latentae.data.seeding import ORDER, check_seed, generator
from latentae.data.stream import ImageStream
from latentae.data.workers import WatchedLoader

Key = tuple[int, int] | tuple[int, int, int]  # epoch, index and perhaps resolution


def training_loader(
    dataset: ImageDataset | ImageStream,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 0,
    start_batch: int = 0,
    num_workers: int = 0,
    pin_memory: bool = False,
    prefetch_factor: int = 2,
) -> DataLoader[Any]:
    """An endless loader of this rank's share of the global batches; iterate over it once.

    Of an `ImageDataset`, global batch b is images b·B·N to (b+1)·B·N of the endless sequence of epochs, each
    epoch a permutation that (seed, epoch) gives; rank r of N takes B of them from r·B on. So N ranks see what
    one rank with batches of N·B sees. An `ImageStream` is divided among ranks × workers: for its order see
    there. Either way a loader with `start_batch=b` goes on exactly where another was after b batches (of a
    stream: with as many ranks and workers). It shares itself out among the ranks: nothing else (such as
    `accelerator.prepare`) may do so again. Where the dataset has several resolutions, all of a global batch
    has the one that (seed, b) gives.

    Args:
        dataset: the samples.
        batch_size: images a batch and rank (B).
        rank, world_size: which of how many processes (N) this is.
        seed: of the order, 0 or more; the dataset has the seed of the crops.
        start_batch: how many batches each rank has had already.
        num_workers: processes that decode, each with one thread of torch; 0: decode in this one.
        pin_memory: put batches into page-locked memory, for faster copies to a GPU.
        prefetch_factor: batches each worker keeps ready.

    Raises:
        ValueError: a number is out of its range.
        WorkerDiedError (while iterating): a worker was killed or crashed; it names the image.
        BrokenImageError (while iterating): many images in a row cannot be decoded.
    """
    _check_ranks(batch_size, rank, world_size)
    check_seed(seed)
    if start_batch < 0:
        raise ValueError(f"start_batch={start_batch} must be 0 or more")
    loading: dict[str, Any] = {
        "num_workers": num_workers,
        "pin_memory": pin_memory,
        "prefetch_factor": prefetch_factor,
    }
    if isinstance(dataset, ImageStream):
        batches = StreamBatches(dataset, batch_size, rank, world_size, seed, start_batch)
        return _loader(batches, None, **loading)
    sampler = EndlessSampler(
        len(dataset), batch_size, rank, world_size, seed, start_batch, len(dataset.resolutions)
    )
    return _loader(dataset, sampler, **loading)


def validation_loader(
    dataset: ImageDataset,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    pin_memory: bool = False,
    prefetch_factor: int = 2,
) -> DataLoader[Any]:
    """Each image exactly once over all ranks: rank r of N has the r-th of N contiguous parts, in order.

    An image that cannot be decoded is left out, so that a batch may be empty; its `broken` says why. No image
    is repeated to fill a batch, so ranks may differ by one image and the last batch may be smaller; with more
    ranks than images some have no batch at all. All samples are those of epoch 0.
    Raises ValueError if a number is out of its range.
    """
    _check_ranks(batch_size, rank, world_size)
    first, last = (len(dataset) * (rank + offset) // world_size for offset in (0, 1))
    batches: list[list[Key]] = [
        [(0, index) for index in range(start, min(start + batch_size, last))]
        for start in range(first, last, batch_size)
    ]
    return _loader(
        dataset,
        batches,
        num_workers=num_workers,
        pin_memory=pin_memory,
        prefetch_factor=prefetch_factor,
        join=collate_readable,
    )


class EndlessSampler(Sampler[list[Key]]):
    """The (epoch, index) pairs of one rank's batches, from `start_batch` on, for ever.

    With resolutions, each pair has the batch's as a third number.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        rank: int,
        world_size: int,
        seed: int,
        start_batch: int,
        num_resolutions: int = 0,
    ) -> None:
        self.num_images = num_images
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.start_batch = start_batch
        self.num_resolutions = num_resolutions

    def __iter__(self) -> Iterator[list[Key]]:
        current_epoch, permutation = -1, np.empty(0, np.int64)
        for batch in itertools.count(self.start_batch):
            first = (batch * self.world_size + self.rank) * self.batch_size
            resolution = batch_resolution(self.num_resolutions, self.seed, batch)
            keys: list[Key] = []
            for position in range(first, first + self.batch_size):
                epoch, offset = divmod(position, self.num_images)
                if epoch != current_epoch:  # positions only rise, so each epoch is permuted once
                    current_epoch, permutation = epoch, epoch_order(self.num_images, self.seed, epoch)
                index = int(permutation[offset])
                keys.append((epoch, index) if resolution is None else (epoch, index, resolution))
            yield keys


def epoch_order(num_images: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order in which an epoch goes through the images: 8 bytes for each."""
    return generator(seed, ORDER, epoch).permutation(num_images)


def _loader(
    dataset: ImageDataset | StreamBatches,
    batches: Sampler[list[Key]] | list[list[Key]] | None,
    *,
    num_workers: int,
    pin_memory: bool,
    prefetch_factor: int,
    join: Callable[[Sequence[Sample]], Batch] = collate,
) -> DataLoader[Any]:
    """A loader of `batches` of a dataset, or of what is made of batches already (None)."""
    return WatchedLoader(
        dataset,
        batch_sampler=batches,
        batch_size=1 if batches is not None else None,  # 1: the default, which a sampler of batches wants
        collate_fn=join if batches is not None else _as_it_is,
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        prefetch_factor=prefetch_factor if num_workers > 0 else None,
        # A DataLoader draws a seed when iterated: from here, so that torch's global state stays as it was.
        generator=torch.Generator(),
    )


def _as_it_is(batch: Batch) -> Batch:
    return batch


def _check_ranks(batch_size: int, rank: int, world_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be 1 or more")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank={rank} must be one of the {world_size} rank(s), counted from 0")
