"""The values of the latent channels: their Gaussian, their correlations and their histograms.

All three are computed from the values of every channel at once, [c, n] in float64, which may take 2 GB.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latentae.devices import to_float64_on_cpu
from latentae.latents.statistics import noise_generators
from latentae.report import figures
from latentae.report.grids import Figure

MOST_BYTES = 2_000_000_000
"""The memory that gathered values may take."""

_MOST_BINS = 4096
_BINS_PER_STD = 4
# The narrowest bins, relative to the mean of a channel or to 1, whichever is larger.
_FINEST = 2.0**-40

ABOUT_CORRELATIONS = (
    "Pearson's correlation of each pair of channels over all images and positions: 0 where the channels are "
    "uncorrelated, as a KL term with some weight makes them; +1 or -1 where one channel repeats another."
)
ABOUT_HISTOGRAMS = (
    "Raw latents, samples of the posterior, over all images and positions; the line is the Gaussian of the "
    "same mean and deviation. Kurtosis is the excess, 0 for a Gaussian: a much larger value means rare large "
    "values, which a denoiser meets seldom and which lose digits in float16. A channel with next to no "
    "deviation is unused."
)


def as_batches(maps: Tensor | Iterable[Tensor]) -> Iterable[Tensor]:
    """Returns batches of maps [B, c, h, w]; one tensor is one batch."""
    return [maps] if isinstance(maps, Tensor) else maps


def check_memory(values: int) -> None:
    """Raises ValueError if this number of values takes more than 2 GB in float64."""
    if 8 * values > MOST_BYTES:
        raise ValueError(
            f"the latents need more than {MOST_BYTES / 1e9:g} GB of memory: measure fewer or smaller "
            "images (--max-images, --image-size)"
        )


@torch.no_grad()
def gather_channels(latents: Tensor | Iterable[Tensor]) -> tuple[Tensor, int]:
    """Gathers the values of each channel of latents [B, c, h, w], or of batches of them.

    Returns:
        [c, n] in float64 on the CPU, and the number of images.

    Raises:
        ValueError: no latents, batches with different numbers of channels, or more than 2 GB of values.
    """
    parts: list[Tensor] = []
    images = total = 0
    for batch in as_batches(latents):
        if parts and batch.shape[1] != len(parts[0]):
            raise ValueError(f"latents of {batch.shape[1]} channels follow latents of {len(parts[0])}")
        images, total = images + len(batch), total + batch.numel()
        check_memory(total)
        parts.append(to_float64_on_cpu(batch.detach()).transpose(0, 1).flatten(1))
    if not total:
        raise ValueError("there are no latents to measure")
    return torch.cat(parts, dim=1), images


def constant_channels(mean: Tensor, std: Tensor) -> list[int]:
    """Returns the channels whose deviation is only rounding, compared with their mean or the others'."""
    return (std <= 1e-6 * torch.maximum(mean.abs(), std.max())).nonzero().flatten().tolist()


def normal_noise(count: int, shape: tuple[int, ...], seed: int) -> Tensor:
    """Returns standard normal values [count, *shape] in float64; row i is a function of (seed, i)."""
    generators = noise_generators(seed, range(count))
    rows = [torch.randn(shape, generator=generator, dtype=torch.float64) for generator in generators]
    return torch.stack(rows) if rows else torch.zeros(0, *shape, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class LatentGaussian:
    """Mean and covariance over channels, in float64; **positions are taken to be independent**.

    These are the first two moments of the aggregate posterior. Neighbouring positions of real latents are
    alike. A sample of this Gaussian has the right values, channel beside channel, but no shapes. The
    covariance is divided by the number of values.

    Attributes:
        images, positions: how many it was fitted to; positions are those of all images together.
        mean: [c].
        covariance: [c, c].
    """

    images: int
    positions: int
    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, values: Tensor, images: int) -> LatentGaussian:
        """Fits the Gaussian to values [c, n]; ``images`` is the number of images they come from."""
        channels, positions = values.shape
        covariance = torch.cov(values, correction=0).reshape(channels, channels)
        return cls(images, positions, values.mean(dim=1), covariance)

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

        The correlation of a channel that does not vary is undefined. It is 0 here; ``constant`` lists these
        channels.
        """
        std = self.std.clone()
        std[self.constant] = torch.inf
        matrix = (self.covariance / std / std[:, None]).clamp(-1, 1)
        matrix.fill_diagonal_(1.0)
        return matrix

    @property
    def divergence(self) -> float | None:
        """KL(this ‖ N(0, I)) of a position in nats: ½ (tr Σ + μᵀμ − c − ln det Σ).

        The distance of the aggregate posterior from the prior, in its first two moments alone. None where it
        is infinite, because a channel does not vary or repeats others.
        """
        logarithm = torch.linalg.slogdet(self.covariance)[1].item() if not self.constant else -math.inf
        if not math.isfinite(logarithm):
            return None
        trace = self.covariance.diagonal().sum() + self.mean.square().sum()
        return (trace.item() - len(self.mean) - logarithm) / 2

    def sample(self, count: int, size: tuple[int, int], seed: int = 0) -> Tensor:
        """Draws [count, c, h, w] in float64, each position by itself; sample i is a function of (seed, i)."""
        values, vectors = torch.linalg.eigh(self.covariance)
        root = vectors * values.clamp(min=0).sqrt()  # rounding can leave −1e-17, and a constant channel 0
        noise = normal_noise(count, (len(self.mean), *size), seed)
        return torch.einsum("ij,bjhw->bihw", root, noise) + self.mean[:, None, None]


def fit_gaussian(latents: Tensor | Iterable[Tensor]) -> LatentGaussian:
    """Fits mean and covariance over channels to latents; see ``gather_channels`` for input and errors."""
    return LatentGaussian.of(*gather_channels(latents))


@dataclass(frozen=True, eq=False)
class ChannelCorrelations:
    """Pearson's correlations of the channels, over images and positions.

    Attributes:
        matrix: [c, c] in [−1, 1]; 0 where a channel does not vary, and no correlation is defined.
        constant: the channels that do not vary.
        positions: the number of values of each channel.
    """

    matrix: Tensor
    constant: list[int]
    positions: int

    @classmethod
    def of(cls, gaussian: LatentGaussian) -> ChannelCorrelations:
        """Returns the correlations of a fitted Gaussian."""
        return cls(gaussian.correlation, gaussian.constant, gaussian.positions)

    @property
    def largest(self) -> float:
        """The largest absolute value off the diagonal; 0 of a single channel."""
        return (self.matrix - torch.eye(len(self.matrix), dtype=torch.float64)).abs().max().item()

    def figure(self) -> Figure:
        """Draws the matrix in colours, with its numbers where there is room for them."""
        return figures.matrix("Correlations of the latent channels", self.matrix.numpy(), self.constant)

    def numbers(self) -> dict[str, Any]:
        """Returns the values for JSON."""
        return {"matrix": self.matrix.tolist(), "constant": self.constant, "positions": self.positions}


def channel_correlations(latents: Tensor | Iterable[Tensor]) -> ChannelCorrelations:
    """Measures the correlations of the channels; see ``gather_channels`` for input and errors."""
    return ChannelCorrelations.of(fit_gaussian(latents))


@dataclass(frozen=True, eq=False)
class ChannelHistogram:
    """The distribution of the values of one channel.

    Attributes:
        edges, counts: [n + 1] rising and evenly spaced, and [n] int64; a bin holds its lower edge.
        mean, std, kurtosis: of the values themselves; the kurtosis is the excess, 0 of a constant.
        constant: whether the channel does not vary.
    """

    edges: Tensor
    counts: Tensor
    mean: float
    std: float
    kurtosis: float
    constant: bool


@dataclass(frozen=True, eq=False)
class ChannelHistograms:
    """One histogram per channel of latents; each counts ``values`` values."""

    channels: list[ChannelHistogram]
    values: int

    @classmethod
    def of(cls, values: Tensor) -> ChannelHistograms:
        """Counts values [c, n] in bins, four to eight of them per standard deviation, 4096 at most."""
        means, stds = values.mean(dim=1), torch.std(values, dim=1, correction=0)
        constant = constant_channels(means, stds)
        channels = []
        for channel, own in enumerate(values):  # one by one, to need less memory
            mean, std = means[channel].item(), stds[channel].item()
            deviations = own - mean
            fourth = deviations.pow(4).mean().item()
            kurtosis = fourth / max(std**4, 1e-300) - 3 if std > 0 else 0.0
            edges, counts = _count(deviations, mean, std)
            channels.append(ChannelHistogram(edges, counts, mean, std, kurtosis, channel in constant))
        return cls(channels, values.shape[1])

    def figure(self, most: int = 16) -> Figure:
        """Draws the first ``most`` channels as small charts beside each other."""
        panels = [
            figures.Histogram(
                title=f"channel {number}",
                facts="constant" if channel.constant else f"kurtosis {channel.kurtosis:+.2f}",
                edges=channel.edges.numpy(),
                counts=channel.counts.numpy(),
                mean=channel.mean,
                std=0.0 if channel.constant else channel.std,
            )
            for number, channel in enumerate(self.channels[:most])
        ]
        hidden = len(self.channels) > most
        part = f" (the first {most} of {len(self.channels)})" if hidden else ""
        return figures.histograms(f"Values of the latent channels{part}", panels)

    def numbers(self) -> dict[str, Any]:
        """Returns the values for JSON."""
        return {
            "values": self.values,
            "channels": [
                {
                    **{name: getattr(channel, name) for name in ("mean", "std", "kurtosis", "constant")},
                    "first_edge": channel.edges[0].item(),
                    "bin_width": (channel.edges[1] - channel.edges[0]).item(),
                    "counts": channel.counts.tolist(),
                }
                for channel in self.channels
            ],
        }


def channel_histograms(latents: Tensor | Iterable[Tensor]) -> ChannelHistograms:
    """Counts the values of each channel; see ``gather_channels`` for input and errors."""
    return ChannelHistograms.of(gather_channels(latents)[0])


def _count(deviations: Tensor, mean: float, std: float) -> tuple[Tensor, Tensor]:
    """Returns edges [n + 1] and counts [n] of mean + deviations: bins 2^k wide, one edge at the mean."""
    narrowest = max(_FINEST * max(1.0, abs(mean)), 2 * deviations.abs().max().item() / (_MOST_BINS - 2))
    width = 2.0 ** math.ceil(math.log2(narrowest))
    if std > 0:
        width = max(width, 2.0 ** math.floor(math.log2(std / _BINS_PER_STD)))
    places = (deviations / width).floor().long()
    first = int(places.min())
    counts = torch.bincount(places - first)
    edges = mean + torch.arange(first, first + len(counts) + 1, dtype=torch.float64) * width
    return edges, counts
