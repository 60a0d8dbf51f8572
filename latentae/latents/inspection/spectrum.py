"""The radially averaged power spectrum of maps: how much of them is coarse, and how much is fine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latentae.devices import to_float64_on_cpu
from latentae.latents.inspection.channels import as_batches, constant_channels
from latentae.report import figures
from latentae.report.grids import Figure

SMALLEST_SIDE = 4
"""Of maps that have a spectrum."""

_MAPS_AT_ONCE = 16  # for a tensor of many large images the transform would take several times its memory

ABOUT = (
    "Power at each spatial frequency, averaged over directions, relative to its mean: white noise is a level "
    "line at 1, photographs fall with a slope of about -2. Frequencies are relative to each map's own "
    "Nyquist frequency (half a cycle per pixel, or a latent position). Latents that lie above the images "
    "averaged down to their size at high frequencies hold more fine detail than an image of that size, "
    "which denoisers find harder to learn; a level end is noise. Thin lines are single channels."
)


@dataclass(frozen=True, eq=False)
class RadialSpectrum:
    """The power spectral density of maps, averaged over directions and over maps.

    Attributes:
        frequency: [n] in cycles a pixel of the map; the last is the Nyquist frequency, 0.5, or just below it.
        power: [c, n] of each channel; white noise of variance σ² has σ² at every frequency.
        bins: [n] the number of the map's frequencies that each value is the mean of.
        constant: the channels without any power.
        maps: the number of maps.
    """

    frequency: Tensor
    power: Tensor
    bins: Tensor
    constant: list[int]
    maps: int

    @property
    def relative(self) -> Tensor:
        """[c', n] the power of each channel that varies, divided by its mean: 1 for white noise."""
        varying = [channel for channel in range(len(self.power)) if channel not in self.constant]
        power = self.power[varying]
        return power / ((power @ self.bins) / self.bins.sum())[:, None]

    @property
    def mean_relative(self) -> Tensor:
        """[n] the mean of ``relative`` over the channels; empty where none varies."""
        relative = self.relative
        return relative.mean(dim=0) if len(relative) else relative.flatten()

    @property
    def slope(self) -> float | None:
        """d log power / d log frequency of ``mean_relative``, by least squares over the rings.

        About −2 for photographs and 0 for white noise (Field 1987). The lowest ring is left out where there
        are others enough, since it lacks what went with the mean. None where no channel varies, or a ring has
        no power.
        """
        first = 1 if len(self.frequency) > 2 else 0
        power = self.mean_relative[first:]
        if not len(power) or not bool((power > 0).all()) or len(power) < 2:
            return None
        x, y = self.frequency[first:].log(), power.log()
        x = x - x.mean()
        return ((x @ y) / (x @ x)).item()

    @property
    def fine_share(self) -> float | None:
        """The share of the power above half of the Nyquist frequency: about 0.75 for white noise.

        None where no channel varies.
        """
        power = self.mean_relative * self.bins if len(self.relative) else None
        return None if power is None else (power[self.frequency > 0.25].sum() / power.sum()).item()

    def numbers(self) -> dict[str, Any]:
        """Returns the values for JSON."""
        return {
            "frequency_cycles_per_pixel": self.frequency.tolist(),
            "power": self.power.tolist(),
            "slope": self.slope,
            "share_above_half_nyquist": self.fine_share,
            "constant": self.constant,
            "maps": self.maps,
        }


@dataclass(frozen=True, eq=False)
class MapPower:
    """The power of single maps of one size (h, w), before it is averaged over them.

    Attributes:
        bins: [n] the number of frequencies in each ring.
        power: [B, c, n] the mean power of each ring.
        mean, variance: [B, c] of the maps; the mean is weighted by the window.
    """

    size: tuple[int, int]
    bins: Tensor
    power: Tensor
    mean: Tensor
    variance: Tensor


@torch.no_grad()
def map_power(maps: Tensor) -> MapPower:
    """Measures the power of each map [B, c, h, w] in rings of frequency, in float64.

    Each channel of each map loses its mean and is multiplied by a Hann window before its Fourier transform.
    Otherwise the jump from one border to the opposite one would look like fine detail. Frequencies are put
    into rings of whole cycles along the shorter side; the corners beyond Nyquist are in none. Of white noise
    the lowest ring keeps 0.71 of its power, since the window spreads the mean over it; the others keep all.

    Raises:
        ValueError: sides below 4.
    """
    size = (maps.shape[2], maps.shape[3])
    if min(size) < SMALLEST_SIDE:
        raise ValueError(
            f"maps of {size[0]}x{size[1]} are too small for a spectrum, which takes "
            f"{SMALLEST_SIDE}x{SMALLEST_SIDE} or more: take larger images"
        )
    ring, bins = _rings(*size)
    window = torch.outer(*(torch.hann_window(n, dtype=torch.float64) for n in size))
    powers, means, variances = [], [], []
    for part in maps.detach().split(_MAPS_AT_ONCE):
        # The power of each frequency
        values = to_float64_on_cpu(part)
        mean = (values * window).sum(dim=(2, 3)) / window.sum()
        centred = values - mean[:, :, None, None]
        spectrum = torch.fft.fft2(centred * window).abs().square() / window.square().sum()
        # Its sum over each ring; the first ring is the mean, the last one outside
        rings = values.new_zeros(*mean.shape, len(bins) + 2)
        rings.index_add_(2, ring.flatten(), spectrum.flatten(2))
        powers.append(rings[..., 1:-1] / bins)
        means.append(mean)
        variances.append(centred.square().mean(dim=(2, 3)))
    return MapPower(size, bins, torch.cat(powers), torch.cat(means), torch.cat(variances))


def average_power(parts: Sequence[MapPower]) -> RadialSpectrum:
    """Averages the power of maps; raises ValueError for none, or several sizes or numbers of channels."""
    if not sum(len(part.power) for part in parts):
        raise ValueError("there are no maps to take a spectrum of")
    shape = [parts[0].mean.shape[1], *parts[0].size]
    for part in parts:
        own = [part.mean.shape[1], *part.size]
        if own != shape:
            raise ValueError(f"maps {own} follow maps {shape}; a spectrum is of maps of one size")
    power, mean, variance = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("power", "mean", "variance")
    )
    bins = parts[0].bins
    return RadialSpectrum(
        frequency=torch.arange(1, len(bins) + 1, dtype=torch.float64) / min(shape[1:]),
        power=power.mean(dim=0),
        bins=bins,
        constant=constant_channels(mean.abs().mean(dim=0), variance.mean(dim=0).sqrt()),
        maps=len(power),
    )


def radial_power_spectrum(maps: Tensor | Iterable[Tensor]) -> RadialSpectrum:
    """Measures the radial power spectrum of maps [B, c, h, w], or of batches of them: latents, or images.

    Raises ValueError for no maps, sides below 4, or maps of different sizes.
    """
    return average_power([map_power(batch) for batch in as_batches(maps)])


def compare_spectra(spectra: Mapping[str, RadialSpectrum], title: str = "Radial power spectra") -> Figure:
    """Draws one line per spectrum, the mean over channels; of the last also each channel, thin.

    Args:
        spectra: name → spectrum; one without any power is named and not drawn.
        title: above the chart.
    """
    lines = [
        figures.Spectrum(_label(name, s.slope), (2 * s.frequency).numpy(), s.relative.numpy())
        for name, s in spectra.items()
    ]
    return figures.spectra(title, lines)


def _label(name: str, slope: float | None) -> str:
    return f"{name}\n{'no power: constant' if slope is None else f'slope {slope:+.2f}'}"


def _rings(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Returns the ring of each frequency [h, w] (0: mean; n + 1: outside) and the sizes of rings 1 to n."""
    side = min(height, width)
    rows, columns = (torch.fft.fftfreq(n, dtype=torch.float64) for n in (height, width))
    ring = (side * torch.hypot(rows[:, None], columns)).round().long()
    last = side // 2
    ring = ring.clamp(max=last + 1)
    return ring, torch.bincount(ring.flatten(), minlength=last + 2)[1:-1].double()
