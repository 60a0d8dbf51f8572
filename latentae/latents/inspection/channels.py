"""The Gaussian that is nearest to the latents of many images: the aggregate posterior's first two moments."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from latentae.devices import to_float64_on_cpu
from latentae.latents.inspection.encoding import as_batches, constant_channels, normal_noise


@dataclass(frozen=True, eq=False)
class LatentGaussian:
    """Mean and covariance over channels, in float64; **positions are taken to be independent**.

    Neighbouring positions of real latents are alike, and a sample of this Gaussian has none of that: it has
    the right values, channel beside channel, and no shapes. The covariance is divided by the number of
    values.

    Attributes:
        images, positions: how many it was fitted to; positions are those of all images together.
        mean: [c].
        covariance: [c, c].
    """

    images: int
    positions: int
    mean: Tensor
    covariance: Tensor

    @property
    def std(self) -> Tensor:
        """[c] the standard deviation of each channel."""
        return self.covariance.diagonal().sqrt()

    @property
    def constant(self) -> list[int]:
        """The channels that do not vary."""
        return constant_channels(self.mean, self.std)

    @property
    def correlation(self) -> Tensor:
        """[c, c] in [−1, 1], with 1 on the diagonal.

        That of a channel that does not vary is not defined; it stands as 0, and ``constant`` names it.
        """
        std = self.std.clone()
        std[self.constant] = torch.inf
        matrix = (self.covariance / std / std[:, None]).clamp(-1, 1)
        matrix.fill_diagonal_(1.0)
        return matrix

    @property
    def divergence(self) -> float | None:
        """KL(this ‖ N(0, I)) of a position in nats: ½ (tr Σ + μᵀμ − c − ln det Σ).

        How far the aggregate posterior is from the prior, in its first two moments alone. None where a
        channel does not vary, or repeats others, and it would be infinite.
        """
        logarithm = torch.linalg.slogdet(self.covariance)[1].item() if not self.constant else -math.inf
        if not math.isfinite(logarithm):
            return None
        trace = self.covariance.diagonal().sum() + self.mean.square().sum()
        return (trace.item() - len(self.mean) - logarithm) / 2

    def sample(self, count: int, size: tuple[int, int], seed: int = 0) -> Tensor:
        """[count, c, h, w] in float64, each position drawn by itself; sample i is a function of (seed, i)."""
        values, vectors = torch.linalg.eigh(self.covariance)
        root = vectors * values.clamp(min=0).sqrt()  # rounding can leave −1e-17, and a constant channel 0
        noise = normal_noise(count, (len(self.mean), *size), seed)
        return torch.einsum("ij,bjhw->bihw", root, noise) + self.mean[:, None, None]


class GaussianFit:
    """Gathers mean and covariance batch by batch.

    Sums are kept around the present mean and moved when it moves (Chan, Golub and LeVeque 1983), so that a
    mean far from zero costs no digits, and the size of the batches does not matter but for rounding.
    """

    def __init__(self) -> None:
        self.images = 0
        self.positions = 0
        self.mean = torch.zeros(0, dtype=torch.float64)
        self.products = torch.zeros(0, 0, dtype=torch.float64)

    @torch.no_grad()
    def add(self, latents: Tensor) -> None:
        """Takes latents [B, c, h, w].

        Raises:
            ValueError: another number of channels than before.
        """
        values = to_float64_on_cpu(latents.detach()).transpose(0, 1).flatten(1)
        channels, count = values.shape
        if not self.images:
            self.mean, self.products = values.new_zeros(channels), values.new_zeros(channels, channels)
        if channels != len(self.mean):
            raise ValueError(f"latents of {channels} channels follow latents of {len(self.mean)}")
        if not count:
            return
        mean = values.mean(dim=1)
        centred = values - mean[:, None]
        difference, total = mean - self.mean, self.positions + count
        between = torch.outer(difference, difference) * (self.positions * count / total)
        self.products = self.products + centred @ centred.T + between
        self.mean = self.mean + difference * (count / total)
        self.images, self.positions = self.images + len(latents), total

    def result(self) -> LatentGaussian:
        """The Gaussian of all that was added.

        Raises:
            ValueError: nothing was.
        """
        if not self.positions:
            raise ValueError("there are no latents to fit a Gaussian to")
        return LatentGaussian(self.images, self.positions, self.mean, self.products / self.positions)


def fit_gaussian(latents: Tensor | Iterable[Tensor]) -> LatentGaussian:
    """Mean and covariance over channels of latents [B, c, h, w], or of batches of them.

    Raises:
        ValueError: no latents, or batches with different numbers of channels.
    """
    fit = GaussianFit()
    for batch in as_batches(latents):
        fit.add(batch)
    return fit.result()
