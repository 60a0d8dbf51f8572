"""Kernel inception distance: an unbiased squared MMD between features (arXiv 1801.01401)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Features(Protocol):
    """Rows of numbers, which need not all be in memory: an array, or a ``FeatureFile``."""

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, d]."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: NDArray[np.int64], /) -> NDArray[np.float32]:
        """The rows of these numbers."""


@dataclass(frozen=True)
class KernelDistance:
    """A mean over subsets, and its spread.

    Attributes:
        value: may be below zero, being unbiased.
        deviation: standard deviation over the subsets.
        subset_size: features in each of them.
    """

    value: float
    deviation: float
    subset_size: int


def kernel_distance(
    first: Features,
    second: Features,
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> KernelDistance:
    """Squared MMD under the kernel (xᵀy / d + 1)³, equation 4 of the paper, over random subsets.

    Args:
        first, second: [N, d] and [M, d], of which only a subset's rows are read at a time.
        subsets: how many; each draws anew from both sides, without replacement.
        subset_size: features from each side; smaller where there are fewer.
        seed: of the draws.

    Raises:
        ValueError: different dimensions, or fewer than two features on either side.
    """
    if len(first.shape) != 2 or len(second.shape) != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(f"features are [N, d] and [M, d]; got {list(first.shape)} and {list(second.shape)}")
    size = min(subset_size, len(first), len(second))
    if size < 2:
        raise ValueError(f"a kernel distance needs two features or more on each side, and there is {size}")
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(subsets):
        # In order, rows that lie on disk are read in one sweep.
        rows = [np.sort(generator.choice(len(x), size, replace=False)) for x in (first, second)]
        x, y = (
            torch.from_numpy(features[row]).double()
            for features, row in zip((first, second), rows, strict=True)
        )
        values.append(_squared_mmd(x, y))
    return KernelDistance(float(np.mean(values)), float(np.std(values)), size)


def _squared_mmd(x: Tensor, y: Tensor) -> float:
    size = len(x)
    within = sum(
        (kernel.sum() - kernel.trace()) / (size * (size - 1)) for kernel in (_kernel(x, x), _kernel(y, y))
    )
    return float(within - 2 * _kernel(x, y).mean())


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    kernel = (x @ y.T).div_(x.shape[1]).add_(1)
    return kernel.square().mul_(kernel)
