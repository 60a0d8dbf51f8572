"""Batches of latents of one shape, where a cache holds several."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from latentae.data.seeding import ORDER, check_seed, generator


class SameShapeBatches(Sampler[list[int]]):
    """Batches of indices, shuffled, each of images of one shape: the ``batch_sampler`` of a DataLoader.

    Every image comes once an epoch; the last batch of each shape may be smaller. The order is a function of
    (seed, epoch).

    Args:
        shapes: of each image: ``LatentDataset.shapes``.
        batch_size: images a batch, 1 or more.
        seed: of the order, 0 or more.
        drop_last: leave out batches that are smaller.
    """

    def __init__(
        self, shapes: Sequence[Hashable], batch_size: int, *, seed: int = 0, drop_last: bool = False
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, but must be at least 1")
        check_seed(seed)
        groups: dict[Hashable, list[int]] = {}
        for index, shape in enumerate(shapes):
            groups.setdefault(shape, []).append(index)
        self._groups = [np.array(group) for group in groups.values()]
        self.batch_size = batch_size
        self.seed = seed
        self.drop_last = drop_last
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The order of this epoch comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        spare = 0 if self.drop_last else self.batch_size - 1
        return sum((len(group) + spare) // self.batch_size for group in self._groups)

    def __iter__(self) -> Iterator[list[int]]:
        rng = generator(self.seed, ORDER, self.epoch)
        batches: list[list[int]] = []
        for group in self._groups:
            shuffled = rng.permutation(group).tolist()
            batches += [
                shuffled[start : start + self.batch_size] for start in range(0, len(group), self.batch_size)
            ]
        if self.drop_last:
            batches = [batch for batch in batches if len(batch) == self.batch_size]
        for position in rng.permutation(len(batches)):
            yield batches[position]
