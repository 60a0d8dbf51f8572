"""How far a mean over images may be from the mean over all images there might have been."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from latentae.devices import to_float64_on_cpu

_DRAWS_AT_A_TIME = 1 << 22


@dataclass(frozen=True)
class Interval:
    """A confidence interval: [low, high]."""

    low: float
    high: float


def bootstrap_interval(
    values: Tensor, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> Interval:
    """The percentile bootstrap interval of the mean (Efron & Tibshirani 1993, chapter 13).

    It says how much the mean depends on which images were drawn, not how well they stand for other data.

    Args:
        values: [N], one an image; finite.
        confidence: the share of resampled means inside, in (0, 1).
        resamples: how many sets of N images are drawn with replacement.
        seed: of the draws.

    Raises:
        ValueError: no values, or a confidence outside (0, 1).
    """
    if values.ndim != 1 or not len(values):
        raise ValueError(f"values are [N] with N of 1 or more; got {list(values.shape)}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}, but must lie between 0 and 1")
    numbers = to_float64_on_cpu(values).numpy()
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    chunk = max(1, _DRAWS_AT_A_TIME // len(numbers))
    for start in range(0, resamples, chunk):
        stop = min(start + chunk, resamples)
        draws = generator.integers(len(numbers), size=(stop - start, len(numbers)))
        means[start:stop] = numbers[draws].mean(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(low), float(high))
