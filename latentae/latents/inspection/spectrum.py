"""How much of maps is coarse and how much is fine: their radially averaged power spectrum."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latentae.devices import to_float64_on_cpu
from latentae.latents.inspection.encoding import as_batches, constant_channels
from latentae.report import figures
from latentae.report.grids import Figure

ABOUT = (
    "Power at each spatial frequency, averaged over directions, relative to its mean: white noise is a level "
    "line at 1, photographs fall with a slope of about -2. Frequencies are relative to each map's own "
    "Nyquist frequency (half a cycle per pixel, or a latent position). Latents that lie above the images "
    "averaged down to their size at high frequencies hold more fine detail than a picture of that size, "
    "which denoisers find harder to learn; a level end is noise. Thin lines are single channels."
)


@dataclass(frozen=True, eq=False)
class RadialSpectrum:
    """The power spectral density of maps, averaged over directions and over maps.

    Attributes:
        frequency: [n] in cycles a pixel of the map; the last is the Nyquist frequency, 0.5, or just below it.
        power: [c, n] of each channel; white noise of variance σ² has σ² at every frequency.
        bins: [n] how many frequencies of the map each value is the mean of.
        constant: the channels without any power.
        maps: how many maps it is of.
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
        """For JSON."""
        return {
            "frequency_cycles_per_pixel": self.frequency.tolist(),
            "power": self.power.tolist(),
            "slope": self.slope,
            "share_above_half_nyquist": self.fine_share,
            "constant": self.constant,
            "maps": self.maps,
        }


class SpectrumSum:
    """Sums the power spectra of maps of one size, batch by batch, in float64.

    Each channel of each map loses its mean and is multiplied by a Hann window before its Fourier transform,
    or the jump from one border to the opposite one would look like fine detail. Frequencies are put into
    rings of whole cycles along the shorter side; the corners beyond Nyquist are in none. Of white noise the
    lowest ring keeps 0.71 of its power, since the window spreads the mean over it; the others keep all.

    Attributes:
        smallest_side: of maps that can be added.
        maps: how many were.
    """

    smallest_side = 4

    def __init__(self) -> None:
        self.maps = 0
        self._size = (0, 0)
        self._sum = torch.zeros(0, 0, dtype=torch.float64)
        self._squares = torch.zeros(0, dtype=torch.float64)
        self._means = torch.zeros(0, dtype=torch.float64)

    @torch.no_grad()
    def add(self, maps: Tensor) -> None:
        """Takes maps [B, c, h, w].

        Raises:
            ValueError: sides below 4, or another size or number of channels than before.
        """
        values = to_float64_on_cpu(maps.detach())
        size = (values.shape[2], values.shape[3])
        if min(size) < self.smallest_side:
            raise ValueError(
                f"maps of {size[0]}x{size[1]} are too small for a spectrum, which takes "
                f"{self.smallest_side}x{self.smallest_side} or more: take larger images"
            )
        if not self.maps:
            self._size, (self._ring, self._bins) = size, _rings(*size)
            self._window = torch.outer(*(torch.hann_window(n, dtype=torch.float64) for n in size))
            self._sum = values.new_zeros(values.shape[1], len(self._bins))
            self._squares = values.new_zeros(values.shape[1])
            self._means = values.new_zeros(values.shape[1])
        if size != self._size or values.shape[1] != len(self._sum):
            raise ValueError(
                f"maps {list(values.shape[1:])} follow maps {[len(self._sum), *self._size]}; a spectrum is "
                "of maps of one size"
            )
        self.maps += len(values)
        for one in values:  # map by map, so that the order of summation does not depend on the batches
            self._add(one)

    def result(self) -> RadialSpectrum:
        """The spectrum of all that was added.

        Raises:
            ValueError: nothing was.
        """
        if not self.maps:
            raise ValueError("there are no maps to take a spectrum of")
        std = (self._squares / self.maps).sqrt()
        rings = torch.arange(1, len(self._bins) + 1, dtype=torch.float64)
        return RadialSpectrum(
            frequency=rings / min(self._size),
            power=self._sum / self.maps / self._bins,
            bins=self._bins,
            constant=constant_channels(self._means / self.maps, std),
            maps=self.maps,
        )

    def _add(self, one: Tensor) -> None:
        mean = (one * self._window).sum(dim=(1, 2)) / self._window.sum()
        centred = one - mean[:, None, None]
        spectrum = torch.fft.fft2(centred * self._window).abs().square() / self._window.square().sum()
        rings = self._sum.new_zeros(len(one), len(self._bins) + 2)
        rings.index_add_(1, self._ring.flatten(), spectrum.flatten(1))
        self._sum += rings[:, 1:-1]
        self._squares += centred.square().mean(dim=(1, 2))
        self._means += mean.abs()


def radial_power_spectrum(maps: Tensor | Iterable[Tensor]) -> RadialSpectrum:
    """The radial power spectrum of maps [B, c, h, w], or of batches of them: latents, or images.

    Raises:
        ValueError: no maps, sides below 4, or maps of different sizes.
    """
    total = SpectrumSum()
    for batch in as_batches(maps):
        total.add(batch)
    return total.result()


def compare_spectra(spectra: Mapping[str, RadialSpectrum], title: str = "Radial power spectra") -> Figure:
    """Draws one line per spectrum, the mean over channels; of the last also each channel, thin.

    Args:
        spectra: name → spectrum. Those without any power are named and not drawn.
        title: stands above the chart.
    """
    lines = [
        figures.Spectrum(_label(name, s.slope), (2 * s.frequency).numpy(), s.relative.numpy())
        for name, s in spectra.items()
    ]
    return figures.spectra(title, lines)


def _label(name: str, slope: float | None) -> str:
    return f"{name}\n{'no power: constant' if slope is None else f'slope {slope:+.2f}'}"


def _rings(height: int, width: int) -> tuple[Tensor, Tensor]:
    """[h, w] the ring of each frequency, and how many are in rings 1 to n: 0 is the mean, n + 1 outside."""
    side = min(height, width)
    rows, columns = (torch.fft.fftfreq(n, dtype=torch.float64) for n in (height, width))
    ring = (side * torch.hypot(rows[:, None], columns)).round().long()
    last = side // 2
    ring = ring.clamp(max=last + 1)
    return ring, torch.bincount(ring.flatten(), minlength=last + 2)[1:-1].double()
