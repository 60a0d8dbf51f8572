"""Mean and standard deviation of latents, accumulated over batches and merged over ranks."""

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
    for computing the sample variance", equation 2.1). So a mean far from zero costs no digits, and the result
    does not depend on how the images were divided, except for rounding.

    Attributes:
        images: number of images.
        positions: Σ h·w over the images, the number of values in each channel.
        mean: [c].
        squares: [c] the sum of squared deviations from ``mean``.
        between: [c] the part of ``squares`` that lies between images: Σ n_i (mean_i − mean)² over the images,
            where image i has n_i positions.
    """

    images: int
    positions: int
    mean: Tensor
    squares: Tensor
    between: Tensor

    @classmethod
    def of(cls, latents: Tensor) -> LatentStatistics:
        """Returns the statistics of a batch [B, c, h, w] on any device, of any float dtype; B, h, w ≥ 1."""
        values = to_float64_on_cpu(latents.detach()).flatten(2)
        mean = values.mean(dim=(0, 2))
        values = values - mean[:, None]
        return cls(
            images=len(values),
            positions=len(values) * values.shape[2],
            mean=mean,
            squares=values.square().sum(dim=(0, 2)),
            between=values.shape[2] * values.mean(dim=2).square().sum(dim=0),
        )

    def merge(self, other: LatentStatistics) -> LatentStatistics:
        """Returns the statistics of the union of both sets of images.

        Raises:
            ValueError: another number of channels.
        """
        if len(self.mean) != len(other.mean):
            raise ValueError(
                f"statistics of {len(self.mean)} and of {len(other.mean)} latent channels cannot be merged"
            )
        positions = self.positions + other.positions
        difference = other.mean - self.mean
        moved = difference.square() * (self.positions * other.positions / positions)
        return LatentStatistics(
            images=self.images + other.images,
            positions=positions,
            mean=self.mean + difference * (other.positions / positions),
            squares=self.squares + other.squares + moved,
            between=self.between + other.between + moved,
        )

    @property
    def variance(self) -> Tensor:
        """[c] the variance of each channel, divided by the number of values (not by one less)."""
        return self.squares / self.positions

    @property
    def std(self) -> Tensor:
        """[c] the standard deviation of each channel."""
        return self.variance.sqrt()

    @property
    def centred_std(self) -> float:
        """Standard deviation of all values around their channel's mean: √ of the channels' mean variance."""
        return math.sqrt(self.variance.mean().item())

    @property
    def global_mean(self) -> float:
        """Mean of all values."""
        return self.mean.mean().item()

    @property
    def global_std(self) -> float:
        """Standard deviation of all values around ``global_mean``; it includes the channels' differences."""
        return math.sqrt((self.variance + (self.mean - self.global_mean).square()).mean().item())

    @property
    def std_between_images(self) -> Tensor:
        """[c] the standard deviation of the images' means, each weighted by its number of positions."""
        return (self.between / self.positions).sqrt()


def merge_over_ranks(own: LatentStatistics | None) -> LatentStatistics | None:
    """Merges all ranks' statistics in rank order, to the same bits on each rank; every rank calls it.

    Args:
        own: of this rank's images; None where it has none.

    Returns:
        None where no rank has images.
    """
    gathered = distributed.all_gather_concat(_pack(own) if own is not None else _NOTHING)
    if not len(gathered):
        return None
    channels = int(gathered[0].item())
    merged: LatentStatistics | None = None
    for row in gathered.view(-1, 3 + 3 * channels):
        theirs = _unpack(row, channels)
        merged = theirs if merged is None else merged.merge(theirs)
    return merged


_NOTHING = torch.zeros(0, dtype=torch.float64)


def _pack(statistics: LatentStatistics) -> Tensor:
    """Returns one row that begins with the number of channels, which a rank without images does not know."""
    numbers = [len(statistics.mean), statistics.images, statistics.positions]
    head = torch.tensor(numbers, dtype=torch.float64)
    return torch.cat([head, statistics.mean, statistics.squares, statistics.between])


def _unpack(row: Tensor, channels: int) -> LatentStatistics:
    head, mean, squares, between = row.split([3, channels, channels, channels])
    _, images, positions = (int(number) for number in head.tolist())
    return LatentStatistics(images, positions, mean, squares, between)
