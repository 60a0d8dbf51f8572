"""Mean and standard deviation of latents, batch by batch and rank by rank, with their standard errors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from latentae import distributed
from latentae.devices import to_float64_on_cpu


@dataclass(frozen=True, eq=False)
class LatentStatistics:
    """Moments of latents [B, c, h, w], in float64 on the CPU.

    Sums are kept around the present mean and moved when it moves (Chan, Golub and LeVeque 1983, "Algorithms
    for computing the sample variance", equation 2.1), so that a mean far from zero costs no digits and the
    result does not depend on how the images were divided, but for rounding.

    **Standard errors.** The values within an image are correlated; the images are taken to be independent.
    With n_i positions in image i and e_i the sum of its squared deviations, the variance is the ratio
    σ² = Σ e_i / Σ n_i, and its standard error that of a ratio of sums over the images as clusters (Cochran
    1977, Sampling Techniques, section 6.4): √(I/(I−1) Σ (e_i − σ² n_i)²) / Σ n_i, for I images. That the mean
    is estimated too is of second order. Relative to σ it is half of that relative to σ².

    Attributes:
        images: how many.
        positions: Σ h·w over the images, the number of values in each channel.
        mean: [c].
        squares: [c] the sum of squared deviations from ``mean``.
        spread: [2c + 1, 2c + 1] the sum over images of t tᵀ, where t = (n, d, e) has the image's number of
            positions, and for each channel the sum of its deviations from ``mean`` and of their squares.
    """

    images: int
    positions: int
    mean: Tensor
    squares: Tensor
    spread: Tensor

    @classmethod
    def of(cls, latents: Tensor) -> LatentStatistics:
        """Those of one batch [B, c, h, w], on any device and of any floating dtype; B, h, w ≥ 1."""
        values = to_float64_on_cpu(latents.detach()).flatten(2)
        mean = values.mean(dim=(0, 2))
        values = values - mean[:, None]
        sizes = values.new_full((len(values), 1), values.shape[2])
        squares = values.square().sum(dim=2)
        clusters = torch.cat([sizes, values.sum(dim=2), squares], dim=1)
        return cls(
            images=len(values),
            positions=len(values) * values.shape[2],
            mean=mean,
            squares=squares.sum(dim=0),
            spread=clusters.T @ clusters,
        )

    def merge(self, other: LatentStatistics) -> LatentStatistics:
        """Those of the images of both.

        Raises:
            ValueError: another number of channels.
        """
        if len(self.mean) != len(other.mean):
            raise ValueError(
                f"statistics of {len(self.mean)} and of {len(other.mean)} latent channels cannot be merged"
            )
        positions = self.positions + other.positions
        difference = other.mean - self.mean
        mean = self.mean + difference * (other.positions / positions)
        between = difference.square() * (self.positions * other.positions / positions)
        return LatentStatistics(
            images=self.images + other.images,
            positions=positions,
            mean=mean,
            squares=self.squares + other.squares + between,
            spread=self._spread_around(mean) + other._spread_around(mean),
        )

    @property
    def variance(self) -> Tensor:
        """[c] of each channel, divided by the number of values (not by one less)."""
        return self.squares / self.positions

    @property
    def std(self) -> Tensor:
        """[c] the standard deviation of each channel."""
        return self.variance.sqrt()

    @property
    def centred_std(self) -> float:
        """Of all values once each channel's mean is taken off: the root of the channels' mean variance."""
        return math.sqrt(self.variance.mean().item())

    @property
    def global_mean(self) -> float:
        """Of all values."""
        return self.mean.mean().item()

    @property
    def global_std(self) -> float:
        """Of all values around ``global_mean``, so with the differences between the channels' means."""
        return math.sqrt((self.variance + (self.mean - self.global_mean).square()).mean().item())

    @property
    def std_error(self) -> Tensor:
        """[c] standard error of ``std``, relative to it; infinite for fewer than two images."""
        size, squares = self.spread[0], self.spread.diagonal()[1 + len(self.mean) :]
        variance = self.variance
        residuals = squares - 2 * variance * size[1 + len(self.mean) :] + variance.square() * size[0]
        return self._relative(residuals, variance)

    @property
    def global_std_error(self) -> float:
        """The larger one of the relative standard errors of ``centred_std`` and ``global_std``."""
        around_means = self._pooled_error(self.spread, self.variance.mean())
        everywhere = torch.full_like(self.mean, self.global_mean)
        total = torch.tensor(self.global_std**2, dtype=torch.float64)
        return max(around_means, self._pooled_error(self._spread_around(everywhere), total))

    def _pooled_error(self, spread: Tensor, variance: Tensor) -> float:
        """Of the variance of all channels' values, given the spread around what it is measured from."""
        channels = len(self.mean)
        weights = torch.zeros(2 * channels + 1, dtype=torch.float64)
        weights[0], weights[1 + channels :] = -variance, 1 / channels
        return self._relative(weights @ spread @ weights, variance).item()

    def _relative(self, residuals: Tensor, variance: Tensor) -> Tensor:
        """Relative standard error of a standard deviation from Σ (e − σ² n)² over the images."""
        if self.images < 2:
            return torch.full_like(variance, torch.inf)
        residuals = residuals.clamp(min=0) * (self.images / (self.images - 1))  # rounding can leave −1e-30
        return residuals.sqrt() / (2 * variance * self.positions)

    def _spread_around(self, mean: Tensor) -> Tensor:
        """``spread`` with the deviations taken from another mean: d' = d − δn, e' = e − 2δd + δ²n."""
        shift = mean - self.mean
        channels = len(shift)
        move = torch.eye(2 * channels + 1, dtype=torch.float64)
        move[1 : 1 + channels, 0] = -shift
        move[1 + channels :, 0] = shift.square()
        move[1 + channels :, 1 : 1 + channels] = torch.diag(-2 * shift)
        return move @ self.spread @ move.T


def merge_over_ranks(own: LatentStatistics | None) -> LatentStatistics | None:
    """All ranks' statistics merged in rank order, equal to the last bit on each; every rank calls it.

    Args:
        own: of this rank's images, None where it has none.

    Returns:
        None where no rank has images.
    """
    gathered = distributed.all_gather_concat(_pack(own) if own is not None else _NOTHING)
    if not len(gathered):
        return None
    channels = int(gathered[0].item())
    merged: LatentStatistics | None = None
    for row in gathered.view(-1, 3 + 2 * channels + (2 * channels + 1) ** 2):
        theirs = _unpack(row, channels)
        merged = theirs if merged is None else merged.merge(theirs)
    return merged


_NOTHING = torch.zeros(0, dtype=torch.float64)


def _pack(statistics: LatentStatistics) -> Tensor:
    """All in one row, which begins with the number of channels: a rank without images does not know it."""
    numbers = [len(statistics.mean), statistics.images, statistics.positions]
    head = torch.tensor(numbers, dtype=torch.float64)
    return torch.cat([head, statistics.mean, statistics.squares, statistics.spread.flatten()])


def _unpack(row: Tensor, channels: int) -> LatentStatistics:
    head, mean, squares, spread = row.split([3, channels, channels, (2 * channels + 1) ** 2])
    _, images, positions = (int(number) for number in head.tolist())
    side = 2 * channels + 1
    return LatentStatistics(images, positions, mean, squares, spread.view(side, side))
