"""Distances between two distributions of features, each with its paper.

Fréchet (arXiv 1706.08500), kernel (arXiv 1801.01401), CLIP-MMD (arXiv 2401.09603), and precision and recall
(arXiv 1904.06991).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentae.devices import to_float64_on_cpu
from latentae.report.results import METRICS, Value

_FRECHET = {"inception": "rfid", "vgg16": "fd_vgg16", "dinov2": "fd_dinov2"}
# Number of images below which the bias of a Fréchet distance of 2048 features shows.
_SMALL_SAMPLE = 5000
_ROWS = 1024
# CMMD's bandwidth, and the factor that makes its numbers readable.
_SIGMA, _SCALE = 10.0, 1000.0
# Of precision and recall: the neighbour that bounds a ball, and images at most, since the cost is quadratic.
_NEIGHBOUR, _MOST_NEIGHBOURS = 3, 10_000
_PAIRED_ROWS = 256


class GaussianStatistics:
    """Mean and covariance of features, in float64, streamed and mergeable.

    Sums of squares are taken about the running mean (Chan et al. 1983), so that nothing cancels however far
    the features lie from the origin. The order of ``add`` and ``merge`` changes only the last bits.

    Args:
        dimensions: d, the length of a feature.

    Attributes:
        count: number of features.
        mean: [d] float64.
        scatter: [d, d] float64, Σ (x − mean)(x − mean)ᵀ.
    """

    def __init__(self, dimensions: int) -> None:
        self.count = 0
        self.mean = torch.zeros(dimensions, dtype=torch.float64)
        self.scatter = torch.zeros(dimensions, dimensions, dtype=torch.float64)

    @property
    def covariance(self) -> Tensor:
        """[d, d], unbiased; raises ValueError for fewer than two features."""
        if self.count < 2:
            raise ValueError(f"a covariance needs two features or more, and there are {self.count}")
        return self.scatter / (self.count - 1)

    @torch.no_grad()
    def add(self, features: Tensor) -> None:
        """Adds features [B, d] of any floating dtype, from any device; raises ValueError for other input."""
        dimensions = len(self.mean)
        if features.ndim != 2 or features.shape[1] != dimensions:
            raise ValueError(f"features are [B, {dimensions}]; got {list(features.shape)}")
        if not len(features):
            return
        features = to_float64_on_cpu(features)
        if not torch.isfinite(features).all():
            raise ValueError("features hold values that are not finite: look for images that do")
        batch = GaussianStatistics(dimensions)
        batch.count = len(features)
        batch.mean = features.mean(dim=0)
        centered = features - batch.mean
        batch.scatter = centered.T @ centered
        self.merge(batch)

    def merge(self, other: GaussianStatistics) -> None:
        """Adds the features of another one."""
        total = self.count + other.count
        if not other.count:
            return
        difference = other.mean - self.mean
        weight = self.count * other.count / total
        self.scatter = self.scatter + other.scatter + weight * torch.outer(difference, difference)
        self.mean = self.mean + difference * (other.count / total)
        self.count = total


def frechet_distance(first: GaussianStatistics, second: GaussianStatistics) -> float:
    """‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½), equation 6 of the paper; 0 or more.

    The trace of the root is the sum of the roots of the eigenvalues of Σ₁^½ Σ₂ Σ₁^½, which is symmetric and
    has those of Σ₁ Σ₂: no complex numbers, no iteration that may not converge, singular matrices included.

    Raises:
        ValueError: different dimensions, or fewer than two features on either side.
    """
    if len(first.mean) != len(second.mean):
        raise ValueError(f"features have {len(first.mean)} and {len(second.mean)} dimensions")
    sigma1, sigma2 = first.covariance, second.covariance
    values, vectors = torch.linalg.eigh(sigma1)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    eigenvalues = torch.linalg.eigvalsh(root @ sigma2 @ root).clamp(min=0)
    distance = (
        (first.mean - second.mean).square().sum()
        + sigma1.trace()
        + sigma2.trace()
        - 2 * eigenvalues.sqrt().sum()
    )
    return max(0.0, distance.item())


@dataclass(frozen=True)
class KernelDistance:
    """A mean over subsets, and its spread.

    Attributes:
        value: the mean; can be negative, since the estimate is unbiased.
        deviation: standard deviation over the subsets.
        subset_size: number of features in each subset.
    """

    value: float
    deviation: float
    subset_size: int


def kernel_distance(
    first: FeatureFile | NDArray[np.float32],
    second: FeatureFile | NDArray[np.float32],
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> KernelDistance:
    """Returns the squared MMD under the kernel (xᵀy / d + 1)³, equation 4 of the paper, over random subsets.

    Args:
        first, second: [N, d] and [M, d]; the rows of one subset are read at a time.
        subsets: number of subsets, each drawn from both sides without replacement.
        subset_size: number of features from each side; smaller if there are fewer.
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
        # In rising order, so that rows on disk are read in one sweep.
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


def clip_mmd(first: FeatureFile | NDArray[np.float32], second: FeatureFile | NDArray[np.float32]) -> float:
    """Returns CMMD's distance: 1000 times the squared MMD under the kernel exp(−‖x − y‖² / 200).

    The biased estimate over all pairs, as in the paper's code, equation 5 of Gretton et al. 2012; computed in
    float64 in blocks.

    Args:
        first, second: [N, d] and [M, d], of unit length.

    Raises:
        ValueError: different dimensions, or no feature on either side.
    """
    if first.shape[1:] != second.shape[1:] or not len(first) or not len(second):
        raise ValueError(f"features are [N, d] and [M, d]; got {list(first.shape)} and {list(second.shape)}")
    return _SCALE * (
        _mean_kernel(first, first) + _mean_kernel(second, second) - 2 * _mean_kernel(first, second)
    )


def _mean_kernel(
    first: FeatureFile | NDArray[np.float32], second: FeatureFile | NDArray[np.float32]
) -> float:
    # 1 is left out of the sum: kernels are close to 1, and what is left keeps its digits.
    total = torch.zeros((), dtype=torch.float64)
    for x in _double_parts(first):
        for y in _double_parts(second):
            total += torch.expm1(_squared_distances(x, y) / (-2 * _SIGMA**2)).sum()
    return total.item() / (len(first) * len(second))


@dataclass(frozen=True)
class PrecisionRecall:
    """Holds how far two sets of features cover each other.

    Attributes:
        precision: share of the reconstructions that lie within the originals' manifold.
        recall: share of the originals that lie within the reconstructions' manifold.
        count: number of features on each side that were compared.
    """

    precision: float
    recall: float
    count: int


def precision_recall(
    originals: FeatureFile | NDArray[np.float32], reconstructions: FeatureFile | NDArray[np.float32]
) -> PrecisionRecall:
    """Returns improved precision and recall (Kynkäänniemi et al. 2019, equation 1) with k = 3.

    A manifold is the union of balls around its features; a ball reaches to the third nearest other feature.
    Of more than 10,000 images, 10,000 evenly spread ones count, the same on both sides. Distances are
    computed in float64.

    Raises:
        ValueError: the shapes differ, or there are fewer than 4 features.
    """
    if len(originals.shape) != 2 or originals.shape != reconstructions.shape:
        raise ValueError(
            f"features are [N, d] of the same images; got {list(originals.shape)} and "
            f"{list(reconstructions.shape)}"
        )
    if len(originals) <= _NEIGHBOUR:
        raise ValueError(f"precision and recall need {_NEIGHBOUR + 1} images or more")
    count = min(len(originals), _MOST_NEIGHBOURS)
    rows = np.arange(count) * len(originals) // count
    real, made = (torch.from_numpy(features[rows]) for features in (originals, reconstructions))
    radii = [_ball_radii(features) for features in (real, made)]
    in_real, in_made = [], torch.zeros(count, dtype=torch.bool)
    for part, radius in zip(made.split(_PAIRED_ROWS), radii[1].split(_PAIRED_ROWS), strict=True):
        distances = _squared_distances(part.double(), real.double())
        in_real.append((distances <= radii[0]).any(dim=1))
        in_made |= (distances <= radius[:, None]).any(dim=0)
    return PrecisionRecall(torch.cat(in_real).double().mean().item(), in_made.double().mean().item(), count)


def _ball_radii(features: Tensor) -> Tensor:
    """Returns the squared distance of each feature to its third nearest other one, [N] float64."""
    own = features.double()
    parts = []
    for start in range(0, len(own), _PAIRED_ROWS):
        distances = _squared_distances(own[start : start + _PAIRED_ROWS], own)
        parts.append(distances.kthvalue(_NEIGHBOUR + 1, dim=1).values)  # the nearest is itself
    return torch.cat(parts)


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Returns ‖x − y‖² of all pairs, [n, m], of float64 features [n, d] and [m, d]."""
    products = (x @ y.T).mul_(-2)
    return products.add_(x.square().sum(dim=1)[:, None]).add_(y.square().sum(dim=1)).clamp_(min=0)


def _double_parts(features: FeatureFile | NDArray[np.float32]) -> Iterator[Tensor]:
    for start in range(0, len(features), _ROWS):
        yield torch.from_numpy(features[start : start + _ROWS]).double()


class FeatureFile:
    """Rows of float32 numbers that are appended to a file and read back in parts.

    Args:
        path: the file; an existing one is replaced.
        dimensions: numbers per row.
    """

    def __init__(self, path: Path, dimensions: int) -> None:
        self.path = path
        self.dimensions = dimensions
        path.write_bytes(b"")

    def append(self, features: Tensor) -> None:
        """Appends rows [n, dimensions]."""
        with self.path.open("ab") as file:
            file.write(features.float().contiguous().numpy().data)

    @property
    def shape(self) -> tuple[int, int]:
        """[N, d]: the number of rows, and of numbers per row."""
        return self.path.stat().st_size // (4 * self.dimensions), self.dimensions

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns some rows, as a slice or by their numbers, in memory."""
        if not len(self):
            return np.zeros((0, self.dimensions), np.float32)
        # Map the file on every read: pages touched in a long-lived mapping count as this process's memory.
        return np.array(np.memmap(self.path, np.float32, "r", shape=self.shape)[rows])


def feature_distances(
    network: str, originals: FeatureFile, reconstructions: FeatureFile
) -> tuple[dict[str, Value], str | None]:
    """Returns the distances of one network's features, as metric → value.

    The Fréchet distance, for Inception also the kernel distance, precision and recall, and for CLIP the
    CLIP-MMD alone. The second result is a caveat, or the reason why a distance is left out; None if there is
    none.

    Args:
        network: ``inception``, ``vgg16``, ``dinov2`` or ``clip``.
    """
    # Leave out what cannot be computed.
    metric = _FRECHET.get(network, "clip_mmd")
    label, (count, dimensions) = METRICS[metric].label, reconstructions.shape
    missing = sum(int(np.isnan(rows[:, 0]).sum()) for rows in _parts(reconstructions))
    if missing:
        return {}, f"{label} left out: {missing} of {count} images are too small for its network"
    if count < 2:
        return {}, f"{label} left out: it needs two images or more"

    # The distances.
    if network == "clip":
        return {metric: Value(clip_mmd(originals, reconstructions))}, None
    metrics = {metric: Value(frechet_distance_of(originals, reconstructions))}
    if network == "inception":
        kernel = kernel_distance(originals, reconstructions)
        metrics["kid"] = Value(kernel.value, kernel.value - kernel.deviation, kernel.value + kernel.deviation)
        if count > _NEIGHBOUR:
            covered = precision_recall(originals, reconstructions)
            metrics |= {"precision": Value(covered.precision), "recall": Value(covered.recall)}

    # The caveats of few images.
    if count <= dimensions:
        return metrics, (
            f"{label} is of {count} images, no more than its network has features ({dimensions}): the "
            "covariances are singular, and the distance is far from that of many images; compare it only "
            "between models on the same images, never with published numbers"
        )
    if count < _SMALL_SAMPLE:
        return metrics, (
            f"{label} is of {count} images only, which biases it upwards: compare it between models on the "
            "same images, not with published numbers"
        )
    return metrics, None


def frechet_distance_of(originals: FeatureFile, others: FeatureFile) -> float:
    """Returns the Fréchet distance between the features in two files; errors as in ``frechet_distance``."""
    return frechet_distance(_statistics(originals), _statistics(others))


def _statistics(features: FeatureFile) -> GaussianStatistics:
    statistics = GaussianStatistics(features.dimensions)
    for rows in _parts(features):
        statistics.add(torch.from_numpy(rows))
    return statistics


def _parts(features: FeatureFile) -> Iterator[NDArray[np.float32]]:
    return (features[start : start + _ROWS] for start in range(0, len(features), _ROWS))
