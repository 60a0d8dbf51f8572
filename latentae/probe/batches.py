"""Which latents a training step sees: a function of (seed, step)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from latentae.probe.randomness import generator


class Latents(Protocol):
    """What is asked of cached latents; ``LatentDataset`` has it."""

    def __len__(self) -> int:
        """How many images."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``latents`` [c, h, w] as a denoiser sees them and, where the data has labels, ``label``."""

    def set_epoch(self, epoch: int) -> None:
        """Which samples of the posteriors are drawn, and which images are flipped."""


@dataclass(frozen=True)
class LatentBatch:
    """Latents with their labels.

    Attributes:
        latents: [B, c, h, w] float32 on the CPU.
        labels: [B] int64, 0 where the data has none.
    """

    latents: Tensor
    labels: Tensor


class LatentBatches:
    """Batches in a random order of each epoch; images that fill no batch wait for the next epoch.

    Args:
        dataset: the latents.
        batch_size: images a batch.
        seed: of the order.
        offset: [c] added to the latents, for pipelines that cannot subtract it.

    Raises:
        ValueError: fewer images than a batch.
    """

    def __init__(self, dataset: Latents, batch_size: int, seed: int, offset: Tensor | None = None) -> None:
        if len(dataset) < batch_size:
            raise ValueError(
                f"there are {len(dataset)} training images, fewer than a batch of {batch_size}: choose a "
                "smaller --batch-size"
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.offset = offset
        self._epoch = -1
        self._order = torch.zeros(0, dtype=torch.int64)

    def __call__(self, step: int) -> LatentBatch:
        """The batch of a step, from 0."""
        per_epoch = len(self.dataset) // self.batch_size
        epoch, position = divmod(step, per_epoch)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = torch.randperm(len(self.dataset), generator=generator(self.seed, "order", epoch))
            self.dataset.set_epoch(epoch)
        chosen = self._order[position * self.batch_size :][: self.batch_size]
        return collect(self.dataset, chosen.tolist(), self.offset)


def collect(dataset: Latents, indices: list[int], offset: Tensor | None = None) -> LatentBatch:
    """The latents of some images, in this order; ``offset`` [c] is added to them."""
    samples = [dataset[index] for index in indices]
    latents = torch.stack([sample["latents"] for sample in samples]).float()
    if offset is not None:
        latents = latents + offset[:, None, None].to(latents)
    return LatentBatch(latents, torch.tensor([int(sample.get("label", 0)) for sample in samples]))
