"""Distances between the features of originals and of reconstructions, which lie in files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentae.evaluation.frechet import GaussianStatistics, frechet_distance
from latentae.evaluation.kid import kernel_distance
from latentae.report.metrics import METRICS
from latentae.report.results import Value

_FRECHET = {"inception": "rfid", "vgg16": "fd_vgg16"}
# Images above which a Fréchet distance of 2048 features is commonly quoted: with fewer its bias shows.
_SMALL_SAMPLE = 5000
_ROWS = 1024


class FeatureFile:
    """Rows of float32 numbers, appended to a file and read back in parts.

    Args:
        path: the file, which is made anew.
        dimensions: numbers in a row.
    """

    def __init__(self, path: Path, dimensions: int) -> None:
        self.path = path
        self.dimensions = dimensions
        path.write_bytes(b"")

    def append(self, features: Tensor) -> None:
        """Takes [n, dimensions]."""
        with self.path.open("ab") as file:
            file.write(features.float().contiguous().numpy().data)

    @property
    def shape(self) -> tuple[int, int]:
        """How many rows there are so far, and of how many numbers."""
        return self.path.stat().st_size // (4 * self.dimensions), self.dimensions

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """Some rows, in memory; a slice, or their numbers."""
        if not len(self):
            return np.zeros((0, self.dimensions), np.float32)
        # Mapped anew each time: pages of a map that stays count as memory once they were looked at.
        return np.array(np.memmap(self.path, np.float32, "r", shape=self.shape)[rows])


def feature_distances(
    network: str, originals: FeatureFile, reconstructions: FeatureFile
) -> tuple[dict[str, Value], str | None]:
    """The Fréchet distance, and for Inception the kernel distance.

    Args:
        network: ``inception`` or ``vgg16``.

    Returns:
        metric → value, and what must be said beside it; None where nothing is.
    """
    metric = _FRECHET[network]
    label, (count, dimensions) = METRICS[metric].label, reconstructions.shape
    missing = sum(int(np.isnan(rows[:, 0]).sum()) for rows in _parts(reconstructions))
    if missing:
        return {}, f"{label} left out: {missing} of {count} images are too small for its network"
    if count < 2:
        return {}, f"{label} left out: it needs two images or more"
    metrics = {metric: Value(frechet_distance(_statistics(originals), _statistics(reconstructions)))}
    if network == "inception":
        kernel = kernel_distance(originals, reconstructions)
        metrics["kid"] = Value(kernel.value, kernel.value - kernel.deviation, kernel.value + kernel.deviation)
    if count <= dimensions:
        return metrics, (
            f"{label} is of {count} images, no more than its network has features ({dimensions}): the "
            "covariances are singular, and the distance is far from what many images would give; compare it "
            "between models on these very images only, never with published numbers"
        )
    if count < _SMALL_SAMPLE:
        return metrics, (
            f"{label} is of {count} images only, which biases it upwards: compare it between models on these "
            "very images, not with published numbers"
        )
    return metrics, None


def _statistics(features: FeatureFile) -> GaussianStatistics:
    statistics = GaussianStatistics(features.dimensions)
    for rows in _parts(features):
        statistics.add(torch.from_numpy(rows))
    return statistics


def _parts(features: FeatureFile) -> Iterator[NDArray[np.float32]]:
    return (features[start : start + _ROWS] for start in range(0, len(features), _ROWS))
