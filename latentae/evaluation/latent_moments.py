"""Mean, standard deviation and kurtosis of each latent channel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latentae.devices import to_float64_on_cpu


@dataclass(frozen=True)
class ChannelMoments:
    """Per channel, over all images and positions.

    Attributes:
        mean, std: in the latents' own units, unscaled; the deviation is the population's.
        kurtosis: the fourth moment over the squared variance minus 3: 0 for a Gaussian; 0 for a constant.
    """

    mean: list[float]
    std: list[float]
    kurtosis: list[float]


class LatentMoments:
    """The first four moments of each channel, in float64, streamed and mergeable.

    Central moments are updated about the running mean (Pébay 2008, equations 2.1 and following), so that a
    mean far from zero costs no digits.

    Args:
        channels: c, of the latents.
    """

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.mean = torch.zeros(channels, dtype=torch.float64)
        # Σ (x − mean)^k for k = 2, 3, 4.
        self.sums = torch.zeros(3, channels, dtype=torch.float64)

    @torch.no_grad()
    def add(self, latents: Tensor) -> None:
        """Takes latents [B, c, h, w]."""
        if not latents.numel():
            return
        values = to_float64_on_cpu(latents.transpose(0, 1).flatten(1))
        batch = LatentMoments(len(self.mean))
        batch.count = values.shape[1]
        batch.mean = values.mean(dim=1)
        centered = values - batch.mean[:, None]
        batch.sums = torch.stack([centered.pow(power).sum(dim=1) for power in (2, 3, 4)])
        self.merge(batch)

    def merge(self, other: LatentMoments) -> None:
        """Takes in what another one has seen."""
        if not other.count:
            return
        n, m = self.count, other.count
        total = n + m
        d = other.mean - self.mean
        a2, a3, a4 = self.sums
        b2, b3, b4 = other.sums
        second = a2 + b2 + d**2 * (n * m / total)
        third = a3 + b3 + d**3 * (n * m * (n - m) / total**2) + 3 * d * (n * b2 - m * a2) / total
        fourth = (
            a4
            + b4
            + d**4 * (n * m * (n * n - n * m + m * m) / total**3)
            + 6 * d**2 * (n * n * b2 + m * m * a2) / total**2
            + 4 * d * (n * b3 - m * a3) / total
        )
        self.mean = self.mean + d * (m / total)
        self.sums = torch.stack([second, third, fourth])
        self.count = total

    def result(self) -> ChannelMoments:
        """The moments of what was seen so far.

        Raises:
            ValueError: nothing was.
        """
        if not self.count:
            raise ValueError("there are no latents to measure")
        variance = self.sums[0] / self.count
        fourth = self.sums[2] / self.count
        kurtosis = torch.where(variance > 0, fourth / variance.square().clamp(min=1e-300) - 3, 0.0)
        return ChannelMoments(self.mean.tolist(), variance.sqrt().tolist(), kurtosis.tolist())

    def state(self) -> dict[str, Tensor]:
        """Everything as tensors, to store; ``from_state`` undoes it."""
        return {"count": torch.tensor(self.count), "mean": self.mean, "sums": self.sums}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> LatentMoments:
        """What ``state`` was called on."""
        moments = cls(len(state["mean"]))
        moments.count, moments.mean, moments.sums = int(state["count"]), state["mean"], state["sums"]
        return moments
