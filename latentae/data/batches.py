"""Batches: what samples become together, and those of a stream."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TypedDict

import torch
from torch.utils.data import IterableDataset, default_collate

from latentae.data.samples import Sample
from latentae.data.seeding import RESOLUTION, generator
from latentae.data.shards import StreamPlace
from latentae.data.stream import ImageStream
from latentae.data.workers import worker_number


class Batch(TypedDict):
    """What loaders yield: `images` float32 [B, C, H, W] in [-1, 1], `indices` int64 [B], `names`, `broken`.

    `names` has what each image is called, `broken` a description for each image that could not be decoded
    and was replaced.
    """

    images: torch.Tensor
    indices: torch.Tensor
    names: list[str]
    broken: list[str]


def collate(samples: Sequence[Sample]) -> Batch:
    """The batch of some samples."""
    return Batch(
        images=default_collate([sample["images"] for sample in samples]),
        indices=torch.tensor([sample["index"] for sample in samples], dtype=torch.int64),
        names=[sample["name"] for sample in samples],
        broken=[line for sample in samples for line in sample["broken"].split("\n") if line],
    )


def collate_readable(samples: Sequence[Sample]) -> Batch:
    """The batch of those samples whose own image could be decoded, perhaps none; `broken` is about all."""
    batch = collate(samples)
    kept = [number for number, sample in enumerate(samples) if not sample["broken"]]
    return Batch(
        images=batch["images"][kept],
        indices=batch["indices"][kept],
        names=[batch["names"][number] for number in kept],
        broken=batch["broken"],
    )


def batch_resolution(num_resolutions: int, seed: int, batch: int) -> int | None:
    """Which of the resolutions a global batch has, all equally often; None where there is no choice."""
    if num_resolutions == 0:
        return None
    return int(generator(seed, RESOLUTION, batch).integers(num_resolutions))


class StreamBatches(IterableDataset[Batch]):
    """One rank's batches of a stream, each made whole by one worker, from `start_batch` on, for ever.

    Batch b is made by worker b mod W, wherever a resume begins: the worker that a loader asks first then
    takes the part of worker `start_batch` mod W.
    """

    def __init__(
        self, stream: ImageStream, batch_size: int, rank: int, world_size: int, seed: int, start_batch: int
    ) -> None:
        self.stream = stream
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.start_batch = start_batch

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
