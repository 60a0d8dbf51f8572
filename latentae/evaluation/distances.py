"""Distances between the features of originals and of reconstructions, which lie in files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentae.evaluation.frechet import GaussianStatistics, frechet_distance
from latentae.evaluation.kid import kernel_distance
from latentae.evaluation.report.metric_info import METRICS
from latentae.evaluation.report.results import Value

_FRECHET = {"inception": "rfid", "vgg16": "fd_vgg16"}
# Images above which a Fréchet distance of 2048 features is commonly quoted: with fewer its bias shows.
_SMALL_SAMPLE = 5000
_ROWS = 1024


class FeatureFile:
    """Rows of float32 numbers, appended to a file and read back as a map of it.

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

    def read(self) -> NDArray[np.float32]:
        """[N, dimensions], of which only what is looked at comes into memory."""
        if not self.path.stat().st_size:
            return np.zeros((0, self.dimensions), np.float32)
        rows: NDArray[np.float32] = np.memmap(self.path, np.float32, "r")
        return rows.reshape(-1, self.dimensions)


def feature_distances(
    network: str, originals: FeatureFile, reconstructions: FeatureFile
) -> tuple[dict[str, Value], str | None]:
    """The Fréchet distance, and for Inception the kernel distance.

    Args:
        network: ``inception`` or ``vgg16``.

    Returns:
        metric → value, and what must be said beside it; None where nothing is.
    """
    theirs, ours = originals.read(), reconstructions.read()
    metric = _FRECHET[network]
    label, count, dimensions = METRICS[metric].label, len(ours), reconstructions.dimensions
    missing = int(np.isnan(ours[:, 0]).sum())
    if missing:
        return {}, f"{label} left out: {missing} of {count} images are too small for its network"
    if count < 2:
        return {}, f"{label} left out: it needs two images or more"
    metrics = {metric: Value(frechet_distance(_statistics(theirs), _statistics(ours)))}
    if network == "inception":
        kernel = kernel_distance(theirs, ours)
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


def _statistics(features: NDArray[np.float32]) -> GaussianStatistics:
    statistics = GaussianStatistics(features.shape[1])
    for start in range(0, len(features), _ROWS):
        statistics.add(torch.from_numpy(np.array(features[start : start + _ROWS])))
    return statistics
