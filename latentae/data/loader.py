"""Batches and loaders. A batch depends on the seed and the step only, for any number of ranks and workers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset, Sampler, default_collate

from latentae.data.dataset import ImageDataset, Sample
from latentae.data.seeding import ORDER, RESOLUTION, check_seed, generator
from latentae.data.stream import ImageStream, StreamPlace
from latentae.data.workers import WatchedLoader, worker_number

Key = tuple[int, int] | tuple[int, int, int]  # epoch, index and perhaps resolution


class Batch(TypedDict):
    """Holds a batch, as loaders yield it.

    Keys:
        images: float32 [B, C, H, W] in [-1, 1].
        indices: int64 [B].
        names: the name of each image.
        broken: a line for each image that could not be decoded and was replaced.
        latents: of the images, where the dataset has some.
    """

    images: torch.Tensor
    indices: torch.Tensor
    names: list[str]
    broken: list[str]
    latents: NotRequired[torch.Tensor]


def collate(samples: Sequence[Sample]) -> Batch:
    """Joins samples to a batch."""
    batch = Batch(
        images=default_collate([sample["images"] for sample in samples]),
        indices=torch.tensor([sample["index"] for sample in samples], dtype=torch.int64),
        names=[sample["name"] for sample in samples],
        broken=[line for sample in samples for line in sample["broken"].split("\n") if line],
    )
    if samples and "latents" in samples[0]:
        batch["latents"] = default_collate([sample["latents"] for sample in samples])
    return batch


def collate_readable(samples: Sequence[Sample]) -> Batch:
    """Joins the samples whose own image could be decoded, perhaps none; ``broken`` describes all others."""
    batch = collate(samples)
    kept = [number for number, sample in enumerate(samples) if not sample["broken"]]
    return Batch(
        images=batch["images"][kept],
        indices=batch["indices"][kept],
        names=[batch["names"][number] for number in kept],
        broken=batch["broken"],
    )


def batch_resolution(num_resolutions: int, seed: int, batch: int) -> int | None:
    """Draws the resolution of a global batch, all equally often; None if there is no choice."""
    if num_resolutions == 0:
        return None
    return int(generator(seed, RESOLUTION, batch).integers(num_resolutions))


@dataclass(eq=False)
class StreamBatches(IterableDataset[Batch]):
    """One rank's endless batches of a stream, from ``start_batch`` on. One worker makes a whole batch.

    Batch b is made by worker b mod W, wherever a resume begins: then the first worker that a loader asks
    takes the part of worker ``start_batch`` mod W.
    """

    stream: ImageStream
    batch_size: int
    rank: int
    world_size: int
    seed: int
    start_batch: int

    def __iter__(self) -> Iterator[Batch]:
        worker, num_workers = worker_number()
        first = self.start_batch + worker
        part = first % num_workers
        place = StreamPlace(self.seed, self.rank * num_workers + part, self.world_size * num_workers)
        batches_before = first // num_workers  # of this part: those of its numbers that are below `first`
        images = self.stream.images(place, batches_before * self.batch_size)
        for batch in itertools.count(first, num_workers):
            resolution = batch_resolution(len(self.stream.resolutions), self.seed, batch)
            drawn = itertools.islice(images, self.batch_size)
            yield collate([self.stream.sample(image, resolution) for image in drawn])


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
    """Returns an endless loader of this rank's share of the global batches; iterate over it once.

    The epochs of an ``ImageDataset`` are permutations given by (seed, epoch), one after the other. Global
    batch b is images b·B·N to (b+1)·B·N of this endless sequence, and rank r of N takes B of them from r·B
    on. So N ranks see what one rank with batches of N·B sees. An ``ImageStream`` is divided among ranks ×
    workers and describes its own order. In both cases a loader with ``start_batch=b`` continues exactly where
    another was after b batches (a stream: with the same ranks × workers). If the dataset has several
    resolutions, (seed, b) draws one for all of a global batch.

    The loader divides the batches among the ranks itself: nothing else (such as ``accelerator.prepare``) may
    divide them again.

    Args:
        dataset: the samples.
        batch_size: images per batch and rank (B).
        rank, world_size: this process's number, and the number of processes (N).
        seed: of the order, 0 or more; the dataset has the seed of the crops.
        start_batch: how many batches each rank has had already.
        num_workers: processes that decode, each with one thread of torch; 0: decode in this process.
        pin_memory: put batches into page-locked memory, for faster copies to a GPU.
        prefetch_factor: batches each worker keeps ready.

    Raises:
        ValueError: a number is out of range.
        WorkerDiedError (while iterating): a worker was killed or crashed.
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
    """Returns a loader of each image exactly once over all ranks. Rank r has the r-th contiguous part.

    An image that cannot be decoded is left out, so a batch may be empty; its ``broken`` says why. No image is
    repeated to fill a batch, so ranks may differ by one image and the last batch may be smaller; with more
    ranks than images, some ranks have no batch at all. All samples are those of epoch 0.
    Raises ValueError if a number is out of range.
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


@dataclass(eq=False)
class EndlessSampler(Sampler[list[Key]]):
    """Yields the (epoch, index) pairs of one rank's batches, from ``start_batch`` on, without end.

    With several resolutions, the resolution of the batch is the third number.
    """

    num_images: int
    batch_size: int
    rank: int
    world_size: int
    seed: int
    start_batch: int
    num_resolutions: int = 0

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
    """Returns the order of the images in an epoch, int64 [num_images]."""
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
    """Returns a loader of ``batches`` of a dataset; None: the dataset yields batches."""
    return WatchedLoader(
        dataset,
        batch_sampler=batches,
        batch_size=1 if batches is not None else None,  # 1 is the default, required with a batch sampler
        collate_fn=join if batches is not None else _unchanged,
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        prefetch_factor=prefetch_factor if num_workers > 0 else None,
        # A DataLoader draws a seed when iterated: from this generator, and not from torch's global state.
        generator=torch.Generator(),
    )


def _unchanged(batch: Batch) -> Batch:
    return batch


def _check_ranks(batch_size: int, rank: int, world_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be 1 or more")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank={rank} must be one of the {world_size} rank(s), counted from 0")
