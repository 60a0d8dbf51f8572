"""Spectra of latents and images in one chart."""

from __future__ import annotations

from collections.abc import Mapping

from PIL import ImageDraw

from latentae.latents.inspection.axes import Axis, Chart
from latentae.latents.inspection.figure import (
    COLOURS,
    INK,
    MARGIN,
    QUIET,
    TEXT_SIZE,
    TITLE_HEIGHT,
    Figure,
    blank,
    finished,
    font,
    text_size,
)
from latentae.latents.inspection.spectrum import RadialSpectrum

_WIDTH, _HEIGHT = 760, 480
_LEFT, _ABOVE, _BELOW = 110, 16, 76
_LINE = 26

ABOUT = (
    "Power at each spatial frequency, averaged over directions, relative to its mean: white noise is a level "
    "line at 1, photographs fall with a slope of about -2. Frequencies are relative to each map's own "
    "Nyquist frequency (half a cycle a pixel, or a latent position). Latents that lie above the images "
    "averaged down to their size at high frequencies hold more fine detail than a picture of that size, "
    "which denoisers find harder to learn; a level end is noise. Thin lines are single channels."
)


def compare_spectra(spectra: Mapping[str, RadialSpectrum], title: str = "Radial power spectra") -> Figure:
    """One line a spectrum, the mean over channels; of the last also each channel, thin.

    Args:
        spectra: name → spectrum. Those without any power are named and not drawn.
    """
    drawn = {name: spectrum for name, spectrum in spectra.items() if len(spectrum.relative)}
    names = list(spectra)
    legend = MARGIN + max(text_size(_label(name, spectrum))[0] for name, spectrum in spectra.items()) + 50
    width = MARGIN + _LEFT + _WIDTH + legend + MARGIN
    paper, draw = blank(width, TITLE_HEIGHT + _ABOVE + _HEIGHT + _BELOW + MARGIN, title)
    top = TITLE_HEIGHT + _ABOVE
    box = (MARGIN + _LEFT, top, MARGIN + _LEFT + _WIDTH, top + _HEIGHT)
    if drawn:
        chart = Chart(paper, box, *_axes(drawn))
        last = names[-1]
        for name, spectrum in drawn.items():
            colour = COLOURS[names.index(name) % len(COLOURS)]
            xs = (2 * spectrum.frequency).tolist()
            if name == last and len(spectrum.relative) > 1:
                for channel in spectrum.relative.clamp(min=chart.y.low).tolist():
                    chart.line(xs, channel, _pale(colour), 1)
            chart.line(xs, spectrum.mean_relative.clamp(min=chart.y.low).tolist(), colour, 3)
    else:
        draw.rectangle(box, outline=QUIET)
        middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        draw.text(middle, "nothing varies", fill=QUIET, font=font(TEXT_SIZE), anchor="mm")
    _legend(draw, spectra, (box[2] + MARGIN, box[1] + 10))
    return finished(title, paper)


def _axes(spectra: Mapping[str, RadialSpectrum]) -> tuple[Axis, Axis]:
    lowest = min(2 * spectrum.frequency[0].item() for spectrum in spectra.values())
    powers = [value for s in spectra.values() for value in s.relative.flatten().tolist() if value > 0]
    # eight decades at most: below that is rounding
    high = 1.5 * max(powers)
    low = max(min(powers) / 1.5, high * 1e-8)
    x = Axis(lowest / 1.05, 1.05, "frequency / Nyquist frequency", logarithmic=True)
    return x, Axis(low, high, "power / mean power", logarithmic=True)


def _legend(draw: ImageDraw.ImageDraw, spectra: Mapping[str, RadialSpectrum], place: tuple[int, int]) -> None:
    x, y = place
    for number, (name, spectrum) in enumerate(spectra.items()):
        top = y + number * 2.4 * _LINE
        middle = top + TEXT_SIZE / 2
        draw.line((x, middle, x + 32, middle), fill=COLOURS[number % len(COLOURS)], width=4)
        first, second = _label(name, spectrum).split("\n")
        draw.text((x + 42, top), first, fill=INK, font=font(TEXT_SIZE), anchor="la")
        draw.text((x + 42, top + _LINE), second, fill=QUIET, font=font(TEXT_SIZE), anchor="la")


def _label(name: str, spectrum: RadialSpectrum) -> str:
    slope = spectrum.slope
    return f"{name}\n{'no power: constant' if slope is None else f'slope {slope:+.2f}'}"


def _pale(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """Half of the way to white."""
    red, green, blue = (round(255 - (255 - value) / 1.9) for value in colour)
    return red, green, blue
