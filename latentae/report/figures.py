"""Every chart of the project, drawn by matplotlib: as SVG for pages, as pixels for PNG files.

matplotlib is imported by the first chart, since it takes a third of a second to load.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from latentae.report.grids import Figure, Picture
from latentae.report.results import Value
from latentae.report.tables import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Chart

INK, QUIET, GRID = "#1a1c20", "#5b616b", "#dee2e8"
# Distinguishable for colour-blind readers too (Okabe & Ito 2008); readable on white and on black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6bd1", "#7a7a7a")
_DASHES = ("-", "--", ":", "-.")
_DPI = 100
# A page shows SVG in its own colours, light or dark: these are replaced by its variables.
_PAGE_COLOURS = {INK: "currentColor", QUIET: "var(--quiet)", GRID: "var(--line)"}
STYLE: dict[Any, Any] = {
    "font.size": 10.0,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": QUIET,
    "axes.titlesize": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "grid.color": GRID,
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # a dollar in a name is a dollar
}
# Letters of a model's name that a chart shows.
_NAME = 14
# Standard deviations that a histogram shows on each side of the mean.
_REACH = 4.5


@dataclass(frozen=True, eq=False)
class Histogram:
    """One panel of ``histograms``.

    Attributes:
        title, facts: the line above the panel, and what stands below it beside mean and deviation.
        edges, counts: [n + 1] and [n].
        mean, std: of the values; a std of 0 says that they do not vary.
    """

    title: str
    facts: str
    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    mean: float
    std: float


@dataclass(frozen=True, eq=False)
class Spectrum:
    """One line of ``spectra``.

    Attributes:
        name: stands in the legend, perhaps with a second line.
        frequency: [n] relative to the Nyquist frequency.
        power: [channels, n] relative to its mean; [0, n] where there is no power, which is then not drawn.
    """

    name: str
    frequency: NDArray[np.float64]
    power: NDArray[np.float64]


def bars(
    values: Mapping[str, Value], *, text: Callable[[float], str], colours: Mapping[str, str], best: set[str]
) -> Chart:
    """Returns horizontal bars from zero, one per model, with intervals as whiskers and numbers at their ends.

    Args:
        values: model → finite value.
        text: writes a number.
        colours: model → colour.
        best: the models in bold.
    """
    with _chart(3.4, 0.26 * len(values) + 0.12) as chart:
        axes = chart.add_axes((0.37, 0, 0.62, 1))
        _no_frame(axes)
        ends = [value.value if value.high is None else value.high for value in values.values()]
        starts = [value.value if value.low is None else value.low for value in values.values()]
        low, high = min(0.0, *starts), max(0.0, *ends)
        span = (high - low) or 1.0
        axes.set_xlim(low, high + 0.45 * span)  # with room for the numbers
        axes.set_ylim(len(values) - 0.5, -0.5)
        axes.axvline(0, color=QUIET, linewidth=0.8)
        for row, (model, value) in enumerate(values.items()):
            weight = "bold" if model in best else "normal"
            axes.barh(row, value.value, height=0.62, color=colours[model])
            end = max(value.value, 0.0)
            if value.low is not None and value.high is not None:
                error = [[max(0.0, value.value - value.low)], [max(0.0, value.high - value.value)]]
                axes.errorbar(value.value, row, xerr=error, color=INK, elinewidth=1.2, capsize=3)
                end = max(end, value.high)
            axes.annotate(
                text(value.value), (end, row), (5, 0), textcoords="offset points", va="center", weight=weight
            )
            axes.text(
                -0.58,
                row,
                shortened(model, _NAME),
                transform=axes.get_yaxis_transform(),
                va="center",
                weight=weight,
            )
        return chart


def scatter(
    points: Mapping[str, tuple[float, float]],
    *,
    x_name: str,
    text: Callable[[float], str],
    colours: Mapping[str, str],
) -> Chart:
    """Returns one named point per model; names that would overlap stand below each other.

    Args:
        points: model → finite (x, y); x starts at 0.
        x_name: the name of the x axis, with its unit.
        text: writes a y value.
        colours: model → colour.
    """
    with _chart(3.4, 1.9) as chart:
        axes = chart.add_axes((0.17, 0.27, 0.8, 0.7))
        axes.set_xlim(0, 1.15 * max(x for x, _ in points.values()) or 1.0)
        axes.set_ylim(*_padded([y for _, y in points.values()], 0.15))
        axes.yaxis.set_major_formatter(lambda value, _: text(value))
        axes.set_xlabel(x_name)
        axes.locator_params(nbins=5)
        lowest = math.inf  # of the names so far, in points upwards
        for model, (x, y) in sorted(points.items(), key=lambda item: -item[1][1]):
            axes.plot([x], [y], "o", color=colours[model], markersize=7)
            place = axes.transData.transform((x, y))[1] * 72 / chart.dpi
            lowest = min(place, lowest - 12)
            is_right = x > sum(axes.get_xlim()) / 2
            axes.annotate(
                shortened(model, _NAME),
                (x, y),
                (-8 if is_right else 8, lowest - place),
                textcoords="offset points",
                ha="right" if is_right else "left",
                va="center",
            )
        return chart


def curves(points: Mapping[str, Sequence[tuple[float, float]]], *, x_name: str) -> Chart:
    """Returns one line per model through its points (x, y), told apart by colour and by dashes."""
    rows = -(-len(points) // 2)
    with _chart(3.4, 2.0 + 0.22 * rows) as chart:
        bottom = (0.5 + 0.22 * rows) / (2.0 + 0.22 * rows)
        axes = chart.add_axes((0.15, bottom, 0.82, 0.97 - bottom))
        for number, (name, curve) in enumerate(points.items()):
            colour, dashes = COLOURS[number % len(COLOURS)], _DASHES[number % len(_DASHES)]
            # A label that begins with "_" would be left out of the legend.
            axes.plot(
                *zip(*curve, strict=True), color=colour, linestyle=dashes, label=f" {shortened(name, 20)}"
            )
        axes.set_xlim(left=0)
        axes.set_xlabel(x_name)
        axes.locator_params(nbins=5)
        chart.legend(loc="lower left", ncols=2, frameon=False, fontsize=9)
        return chart


def histograms(title: str, panels: Sequence[Histogram]) -> Figure:
    """Returns the panels in rows of four, each over the mean ± 4.5 standard deviations, with a Gaussian."""
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    with _chart(3.3 * columns + 0.4, 3.2 * rows + 0.6, title) as chart:
        for number, panel in enumerate(panels):
            axes = chart.add_subplot(rows, columns, number + 1)
            facts = f"mean {panel.mean:.3g}   std {panel.std:.3g}\n{panel.facts}"
            axes.set_title(f"{panel.title}\n\n", loc="left", fontsize=12)
            axes.text(0, 1.02, facts, transform=axes.transAxes, fontsize=9, color=QUIET, va="bottom")
            if panel.std > 0:
                _histogram(axes, panel)
                axes.set_ylabel("density" if number % columns == 0 else "")
            else:
                axes.set(xticks=[], yticks=[])
                _say(axes, "does not vary")
        return _drawn(title, chart)


def spectra(title: str, lines: Sequence[Spectrum]) -> Figure:
    """Returns one line per spectrum, the mean over channels; of the last also each channel, thin."""
    with _chart(11, 5.8, title) as chart:
        axes = chart.add_subplot()
        powers = np.concatenate([line.power.ravel() for line in lines])
        for number, line in enumerate(lines):
            colour = COLOURS[number % len(COLOURS)]
            if len(line.power) > 1 and number == len(lines) - 1:
                axes.plot(line.frequency, line.power.T, color=colour, alpha=0.5, linewidth=0.8)
            mean = line.power.mean(axis=0) if len(line.power) else np.full(len(line.frequency), np.nan)
            axes.plot(line.frequency, mean, color=colour, linewidth=2.4, label=line.name)
        if len(powers):
            # Eight decades at most: below that is rounding.
            high = 1.5 * powers.max()
            axes.set(xscale="log", yscale="log", xlim=(None, 1.05))
            axes.set_ylim(max(powers[powers > 0].min() / 1.5, high * 1e-8), high)
            axes.grid(visible=True)
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter("{x:g}")
                axis.set_minor_formatter("")
        else:
            axes.set(xticks=[], yticks=[])
            _say(axes, "nothing varies")
        axes.set(xlabel="frequency / Nyquist frequency", ylabel="power / mean power")
        chart.legend(loc="outside right upper", frameon=False)
        return _drawn(title, chart)


def matrix(title: str, values: NDArray[np.float64], constant: Sequence[int] = ()) -> Figure:
    """Returns a matrix [c, c] of values in [−1, 1], blue below zero and red above.

    Up to 17 channels their numbers are written in.

    Args:
        constant: channels without a correlation, which stay grey.
    """
    channels = len(values)
    shown = values.astype(float).copy()
    shown[list(constant), :] = shown[:, list(constant)] = np.nan
    side = min(7.5, max(3.0, 0.9 * channels))
    with _chart(side + 1.5, side + 0.9, title) as chart:
        from matplotlib import colormaps

        axes = chart.add_subplot()
        image = axes.imshow(shown, cmap=colormaps["RdBu_r"].with_extremes(bad="#c8c8c8"), vmin=-1, vmax=1)
        axes.locator_params(integer=True)
        axes.set(xlabel="latent channel", ylabel="grey: a constant channel" if len(constant) else "")
        chart.colorbar(image, ticks=[-1, 0, 1], shrink=0.6)
        if channels <= 17:
            for row, column in np.ndindex(channels, channels):
                value = shown[row, column]
                ink = "white" if abs(value) > 0.6 else INK
                label = "-" if math.isnan(value) else f"{value:z.2f}"
                axes.text(column, row, label, color=ink, ha="center", va="center", fontsize=8)
        return _drawn(title, chart)


def code_usage(shares: NDArray[np.float64]) -> Figure:
    """Returns how often each code is chosen, one panel per table: the codes from the most used to the least.

    The axis is logarithmic, from a hundredth of an even share to a hundred times as much. The line is the
    even share. Codes that are never used have no height.

    Args:
        shares: [depth, K] in multiples of an even share.
    """
    with _chart(5.0, 1.7 * len(shares)) as chart:
        for number, table in enumerate(shares):
            axes = chart.add_subplot(len(shares), 1, number + 1)
            name = f"table {number}: " if len(shares) > 1 else ""
            axes.set_title(f"{name}{(table > 0).mean():.1%} of {len(table):,} codes in use", loc="left")
            descending = np.clip(np.sort(table)[::-1], 1e-2, 1e2)
            axes.fill_between(
                np.arange(len(table) + 1), 1e-2, [*descending, descending[-1]], step="post", color=COLOURS[0]
            )
            axes.axhline(1, color=COLOURS[1], linewidth=1)
            axes.set(yscale="log", ylim=(1e-2, 1e2), xlim=(0, len(table)), yticks=[1e-2, 1, 1e2])
            axes.yaxis.set_major_formatter("{x:g}")
        return _drawn("codes", chart)


def paired_curves(pairs: Mapping[str, tuple[Mapping[int, float], Mapping[int, float]]]) -> Figure:
    """Returns one panel per number with two curves, step → value: the first thick, the second thin on it."""
    rows = -(-len(pairs) // 2)
    with _chart(10.4, 2.6 * rows) as chart:
        for number, (name, runs) in enumerate(pairs.items()):
            axes = chart.add_subplot(rows, 2, number + 1)
            axes.set_title(name, loc="left")
            for curve, colour, width in zip(runs, (COLOURS[1], COLOURS[0]), (3.5, 1), strict=True):
                axes.plot(*zip(*sorted(curve.items()), strict=True), color=colour, linewidth=width)
        return _drawn("curves", chart)


def svg(chart: Chart, label: str) -> str:
    """Returns a chart as an SVG element for a page, in the page's own colours.

    Args:
        label: says what the chart shows, for readers who do not see it.
    """
    from matplotlib import rc_context

    text = io.StringIO()
    # The salt makes the names of clipping paths differ between the charts of a page, and repeatable.
    with rc_context({**STYLE, "svg.hashsalt": label}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the reader's fonts write the text
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        chart.savefig(text, format="svg", transparent=True, metadata=nothing)
    drawn = text.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    for colour, variable in _PAGE_COLOURS.items():
        drawn = drawn.replace(colour, variable)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', drawn))
    drawn = re.sub(r' id="([^"]*)"', lambda found: found.group() if found.group(1) in used else "", drawn)
    drawn = re.sub(r' (?:xmlns(?::\w+)?|width|height|version)="[^"]*"', "", drawn, count=5)
    named = f'<svg role="img" aria-label="{escape(label, quote=True)}"'
    return drawn.replace("xlink:href", "href").replace("<svg", named, 1)


@contextmanager
def _chart(width: float, height: float, title: str = "") -> Iterator[Chart]:
    """Opens an empty chart in the house's style; sizes in inches of 100 pixels."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Chart

    with rc_context(STYLE):
        chart = Chart((width, height), dpi=_DPI, layout="constrained" if title else None)
        if title:
            chart.suptitle(title, x=0.01, ha="left", fontsize=15)
        yield chart


def _drawn(title: str, chart: Chart) -> Figure:
    """Returns the chart's pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    if chart.get_layout_engine() is None:
        chart.set_layout_engine("constrained")
    canvas = FigureCanvasAgg(chart)
    canvas.draw()
    picture: Picture = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    return Figure(title, picture)


def _histogram(axes: Axes, panel: Histogram) -> None:
    """Draws densities, and the Gaussian of the same mean and deviation over them."""
    density = panel.counts / (panel.counts.sum() * np.diff(panel.edges))
    axes.stairs(density, panel.edges, fill=True, color="#93b8d6")
    xs = np.linspace(panel.mean - _REACH * panel.std, panel.mean + _REACH * panel.std, 121)
    peak = 1 / (panel.std * math.sqrt(2 * math.pi))
    axes.plot(xs, peak * np.exp(-(((xs - panel.mean) / panel.std) ** 2) / 2), color=COLOURS[1])
    axes.set(xlim=(xs[0], xs[-1]), xlabel="raw latent")
    axes.locator_params(nbins=4)


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=QUIET)


def _no_frame(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _padded(values: Sequence[float], share: float) -> tuple[float, float]:
    """Returns limits around values; never of zero height, not even where all values are equal."""
    low, high = min(values), max(values)
    margin = share * (high - low) or abs(high) * 0.1 or 1.0
    return low - margin, high + margin
