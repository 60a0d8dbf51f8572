"""How the values of each latent channel are distributed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latentae.devices import to_float64_on_cpu
from latentae.evaluation.rate import LatentMoments
from latentae.latents.inspection.encoding import as_batches, constant_channels
from latentae.report import figures
from latentae.report.grids import Figure

_BINS = 4096
_FINEST = -40  # bins are 2^-40 wide at first, as fine as anybody's latents
_BINS_PER_STD = 4

ABOUT = (
    "Raw latents, samples of the posterior, over all images and positions; the line is the Gaussian of the "
    "same mean and deviation. Kurtosis is the excess, 0 for a Gaussian: much more means rare large values, "
    "which a denoiser meets seldom and a float16 cast feels. A channel with next to no deviation is unused."
)


@dataclass(frozen=True, eq=False)
class ChannelHistogram:
    """The values of one channel.

    Attributes:
        edges: [n + 1] rising and evenly spaced; a bin holds its lower edge.
        counts: [n] int64.
        mean, std, kurtosis: of the values themselves; the kurtosis is the excess.
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
    """One histogram a channel of latents.

    Attributes:
        channels: in order.
        values: how many values each channel has.
    """

    channels: list[ChannelHistogram]
    values: int

    def figure(self, most: int = 16) -> Figure:
        """The first ``most`` channels as small charts beside each other."""
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
        hidden = len(self.channels) - len(panels)
        title = "Values of the latent channels"
        if hidden:
            title += f" (the first {most} of {len(self.channels)})"
        return figures.histograms(title, panels)

    def numbers(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "values": self.values,
            "channels": [
                {
                    "mean": channel.mean,
                    "std": channel.std,
                    "kurtosis": channel.kurtosis,
                    "constant": channel.constant,
                    "first_edge": channel.edges[0].item(),
                    "bin_width": (channel.edges[1] - channel.edges[0]).item(),
                    "counts": channel.counts.tolist(),
                }
                for channel in self.channels
            ],
        }


class HistogramCounter:
    """Counts values batch by batch without knowing their range before.

    Each channel has 4096 bins around its mean in the first image. They are 2^k wide, and wherever a value
    falls outside, neighbours are joined two by two until it does not. So counts are exact, and the same
    however the images were divided into batches.
    """

    def __init__(self) -> None:
        self._origins: list[float] = []
        self._exponents: list[int] = []
        self._counts: list[Tensor] = []
        self._moments = LatentMoments(0)

    @torch.no_grad()
    def add(self, latents: Tensor) -> None:
        """Takes finite latents [B, c, h, w]."""
        if not latents.numel():
            return
        values = to_float64_on_cpu(latents.detach())
        if not self._origins:
            self._origins = values[0].flatten(1).mean(dim=1).tolist()
            self._exponents = [_FINEST] * len(self._origins)
            self._counts = [torch.zeros(_BINS, dtype=torch.int64) for _ in self._origins]
            self._moments = LatentMoments(len(self._origins))
        if values.shape[1] != len(self._origins):
            raise ValueError(f"latents of {values.shape[1]} channels follow latents of {len(self._origins)}")
        self._moments.add(values)
        for channel, own in enumerate(values.transpose(0, 1).flatten(1)):
            self._count(channel, own - self._origins[channel])

    def result(self) -> ChannelHistograms:
        """The histograms of all that was added.

        Raises:
            ValueError: nothing was.
        """
        moments = self._moments.result()
        still = constant_channels(
            torch.tensor(moments.mean, dtype=torch.float64), torch.tensor(moments.std, dtype=torch.float64)
        )
        channels = []
        for channel, (mean, std, kurtosis) in enumerate(
            zip(moments.mean, moments.std, moments.kurtosis, strict=True)
        ):
            edges, counts = self._joined(channel, std)
            channels.append(ChannelHistogram(edges, counts, mean, std, kurtosis, channel in still))
        return ChannelHistograms(channels, self._moments.count)

    def _count(self, channel: int, values: Tensor) -> None:
        farthest = values.abs().max().item()
        # 2^k · 2048 > farthest
        needed = math.frexp(farthest / (_BINS // 2))[1] if farthest else _FINEST
        if needed > self._exponents[channel]:
            self._counts[channel] = _join(self._counts[channel], needed - self._exponents[channel])
            self._exponents[channel] = needed
        bins = (values / 2.0 ** self._exponents[channel]).floor().long() + _BINS // 2
        self._counts[channel] += torch.bincount(bins, minlength=_BINS)

    def _joined(self, channel: int, std: float) -> tuple[Tensor, Tensor]:
        """Edges and counts with four to eight bins a standard deviation, from the first value to the last."""
        counts, exponent = self._counts[channel], self._exponents[channel]
        if std > 0:
            steps = max(0, math.floor(math.log2(std / _BINS_PER_STD)) - exponent)
            counts, exponent = _join(counts, steps), exponent + steps
        occupied = counts.nonzero().flatten()
        first, last = int(occupied[0]), int(occupied[-1])
        places = torch.arange(first, last + 2, dtype=torch.float64) - _BINS // 2
        return self._origins[channel] + places * 2.0**exponent, counts[first : last + 1]


def channel_histograms(latents: Tensor | Iterable[Tensor]) -> ChannelHistograms:
    """Histograms of the channels of latents [B, c, h, w], or of batches of them.

    Raises:
        ValueError: no latents, or batches with different numbers of channels.
    """
    counter = HistogramCounter()
    for batch in as_batches(latents):
        counter.add(batch)
    return counter.result()


def _join(counts: Tensor, steps: int) -> Tensor:
    """Counts of bins 2^steps times as wide, about the same origin; bin i becomes ⌊i / 2^steps⌋."""
    places = (torch.arange(_BINS) - _BINS // 2) >> min(steps, 62)
    return torch.zeros_like(counts).index_add_(0, places + _BINS // 2, counts)
