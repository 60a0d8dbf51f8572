"""Histograms as small charts beside each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentae.latents.inspection.axes import Axis, Chart
from latentae.latents.inspection.figure import (
    COLOURS,
    INK,
    MARGIN,
    QUIET,
    TITLE_HEIGHT,
    Figure,
    blank,
    finished,
    font,
    short_number,
)

_COLUMNS = 4
_WIDTH, _HEIGHT = 330, 320
_LEFT, _TOP, _RIGHT, _BOTTOM = 84, 84, 16, 72
_TEXT = 16
# Standard deviations that are shown on each side of the mean.
_REACH = 4.5
_BAR = (147, 184, 214)


@dataclass(frozen=True, eq=False)
class Panel:
    """One histogram.

    Attributes:
        title, facts: the line above it, and what is said of it beside mean and deviation.
        edges, counts: [n + 1] and [n].
        mean, std: of the values; a std of 0 says that they do not vary.
    """

    title: str
    facts: str
    edges: Tensor
    counts: Tensor
    mean: float
    std: float


def histogram_figure(title: str, panels: Sequence[Panel]) -> Figure:
    """The panels in rows of four, each with its own range: the mean ± 4.5 standard deviations."""
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    paper, draw = blank(columns * _WIDTH + 2 * MARGIN, TITLE_HEIGHT + rows * _HEIGHT + MARGIN, title)
    for number, panel in enumerate(panels):
        left = MARGIN + number % columns * _WIDTH
        top = TITLE_HEIGHT + number // columns * _HEIGHT
        draw.text((left + _LEFT, top + 6), panel.title, fill=INK, font=font(_TEXT + 2), anchor="la")
        facts = f"mean {short_number(panel.mean)}   std {short_number(panel.std)}\n{panel.facts}"
        draw.multiline_text((left + _LEFT, top + 30), facts, fill=QUIET, font=font(_TEXT - 1), anchor="la")
        box = (left + _LEFT, top + _TOP, left + _WIDTH - _RIGHT, top + _HEIGHT - _BOTTOM)
        if panel.std > 0:
            _draw(Chart(paper, box, *_axes(panel, number % columns == 0), ticks=(4, 3), size=_TEXT), panel)
        else:
            middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
            draw.rectangle(box, outline=QUIET)
            draw.text(middle, "does not vary", fill=QUIET, font=font(_TEXT), anchor="mm")
    return finished(title, paper)


def _axes(panel: Panel, is_first: bool) -> tuple[Axis, Axis]:
    width = (panel.edges[1] - panel.edges[0]).item()
    highest = max(panel.counts.max().item() / (panel.counts.sum().item() * width), _peak(panel.std))
    x = Axis(panel.mean - _REACH * panel.std, panel.mean + _REACH * panel.std, "raw latent")
    return x, Axis(0, 1.08 * highest, "density" if is_first else "")


def _draw(chart: Chart, panel: Panel) -> None:
    width = (panel.edges[1] - panel.edges[0]).item()
    density = panel.counts.double() / (panel.counts.sum() * width)
    chart.bars(panel.edges.tolist(), density.tolist(), _BAR)
    xs = torch.linspace(chart.x.low, chart.x.high, 121, dtype=torch.float64)
    gaussian = _peak(panel.std) * (-((xs - panel.mean) / panel.std).square() / 2).exp()
    chart.line(xs.tolist(), gaussian.tolist(), COLOURS[1], 2)


def _peak(std: float) -> float:
    """The density of a Gaussian at its mean."""
    return 1 / (std * math.sqrt(2 * math.pi))
