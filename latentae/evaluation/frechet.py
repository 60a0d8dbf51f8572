"""The Fréchet distance between two sets of features (Heusel et al. 2017, arXiv 1706.08500)."""

from __future__ import annotations

import torch
from torch import Tensor

from latentae.devices import to_float64_on_cpu


class GaussianStatistics:
    """Mean and covariance of features, in float64, streamed and mergeable.

    Sums of squares are kept about the running mean (Chan et al. 1983), so that nothing cancels however far
    the features lie from the origin. The order of ``add`` and ``merge`` matters to the last bits only.

    Args:
        dimensions: d, the length of a feature.

    Attributes:
        count: features seen.
        mean: [d] float64.
        scatter: [d, d] float64, Σ (x − mean)(x − mean)ᵀ.
    """

    def __init__(self, dimensions: int) -> None:
        self.count = 0
        self.mean = torch.zeros(dimensions, dtype=torch.float64)
        self.scatter = torch.zeros(dimensions, dimensions, dtype=torch.float64)

    @property
    def covariance(self) -> Tensor:
        """[d, d], unbiased.

        Raises:
            ValueError: fewer than two features.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs two features or more, and there are {self.count}")
        return self.scatter / (self.count - 1)

    @torch.no_grad()
    def add(self, features: Tensor) -> None:
        """Takes features [B, d] of any floating dtype, from any device.

        Raises:
            ValueError: another shape, or values that are not finite.
        """
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
        """Takes in what another one has seen."""
        total = self.count + other.count
        if not other.count:
            return
        difference = other.mean - self.mean
        weight = self.count * other.count / total
        self.scatter = self.scatter + other.scatter + weight * torch.outer(difference, difference)
        self.mean = self.mean + difference * (other.count / total)
        self.count = total

    def state(self) -> dict[str, Tensor]:
        """Everything as tensors, to store; ``from_state`` undoes it."""
        return {"count": torch.tensor(self.count), "mean": self.mean, "scatter": self.scatter}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> GaussianStatistics:
        """What ``state`` was called on."""
        statistics = cls(len(state["mean"]))
        statistics.count = int(state["count"])
        statistics.mean, statistics.scatter = state["mean"].double(), state["scatter"].double()
        return statistics


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
