"""Charts of a report as SVG, drawn for a page that is light or dark."""

from __future__ import annotations

import math
from html import escape

from latentae.evaluation.report.results import Results, Value
from latentae.evaluation.report.table import best_models, info, number, present_metrics

# Told apart also by those who see colours otherwise (Okabe & Ito 2008); readable on white and on black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6bd1", "#7a7a7a")
_RATES = ("bits_per_pixel", "kl_bits_per_pixel")
_DISTORTIONS = ("psnr", "lpips_alex", "rfid", "fd_vgg16")

_WIDTH = 340
_ROW = 24
_BARS_START, _BARS_LENGTH = 104, 164
# Of the scatter plot's axes, in the picture's own units.
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 330, 12, 170


def bar_charts(results: Results) -> list[str]:
    """A figure a metric: one bar a model, from zero, with its interval."""
    return [_bars(results, name) for name in present_metrics(results)]


def rate_distortion_charts(results: Results) -> list[str]:
    """A scatter plot of each distortion against the rate, of the models that have both, if two or more do.

    The rate is that of fixed-length codes, or the KL divergence of a model without codes: both in bits a
    pixel.
    """
    charts = []
    for distortion in _DISTORTIONS:
        points = {
            model: (
                next(metrics[rate].value for rate in _RATES if rate in metrics),
                metrics[distortion].value,
            )
            for model, metrics in results.models.items()
            if distortion in metrics and any(rate in metrics for rate in _RATES)
        }
        if len(points) > 1 and all(math.isfinite(x) for point in points.values() for x in point):
            charts.append(_scatter(results, distortion, points))
    return charts


def _bars(results: Results, name: str) -> str:
    values = {model: metrics[name] for model, metrics in results.models.items() if name in metrics}
    finite = {model: value for model, value in values.items() if math.isfinite(value.value)}
    ends = [value.value if value.high is None else value.high for value in finite.values()]
    scale = _BARS_LENGTH / (max(ends, default=0) or 1)
    best = best_models(results, name)
    rows = [
        _bar(position, model, value, name, scale, _colour(results, model), model in best)
        for position, (model, value) in enumerate(finite.items())
    ]
    better = info(name).better
    remark = "" if better is None else f"{better} is better"
    return _figure(_title(name), remark, _ROW * len(rows), "".join(rows))


def _bar(position: int, model: str, value: Value, name: str, scale: float, colour: str, is_best: bool) -> str:
    y = _ROW * position
    end = _BARS_START + max(0.0, scale * value.value)
    weight = ' font-weight="700"' if is_best else ""
    parts = [
        f'<text x="0" y="{y + 16}"{weight}>{escape(_short(model))}</text>',
        f'<rect x="{_BARS_START}" y="{y + 4}" width="{end - _BARS_START:.1f}" height="16" rx="2" '
        f'fill="{colour}"/>',
    ]
    if value.low is not None and value.high is not None:
        low, high = (_BARS_START + max(0.0, scale * edge) for edge in (value.low, value.high))
        middle = y + 12
        parts.append(
            f'<path class="whisker" d="M{low:.1f} {middle - 4}v8m0-4H{high:.1f}m0-4v8" fill="none"/>'
        )
        end = max(end, high)
    parts.append(f'<text x="{end + 6:.1f}" y="{y + 16}"{weight}>{number(value.value, name)}</text>')
    return "".join(parts)


def _scatter(results: Results, distortion: str, points: dict[str, tuple[float, float]]) -> str:
    x0, x1 = 0.0, 1.15 * max(x for x, _ in points.values()) or 1.0
    y0, y1 = _padded([y for _, y in points.values()])
    parts = [
        f'<path class="axis" d="M{_LEFT} {_TOP}V{_BOTTOM}H{_RIGHT}" fill="none"/>',
        _tick(_LEFT, _BOTTOM + 15, f"{x0:.2f}", "start"),
        _tick((_LEFT + _RIGHT) // 2, _BOTTOM + 15, "bits/px", "middle"),
        _tick(_RIGHT, _BOTTOM + 15, f"{x1:.2f}", "end"),
        _tick(_LEFT - 5, _BOTTOM, number(y0, distortion), "end"),
        _tick(_LEFT - 5, _TOP + 8, number(y1, distortion), "end"),
    ]
    lowest_label = 0.0
    for model, (x, y) in sorted(points.items(), key=lambda item: -item[1][1]):
        across = _LEFT + (_RIGHT - _LEFT) * (x - x0) / (x1 - x0)
        down = _BOTTOM - (_BOTTOM - _TOP) * (y - y0) / (y1 - y0)
        anchor, offset = ("end", -9) if across > (_LEFT + _RIGHT) / 2 else ("start", 9)
        lowest_label = max(down + 4, lowest_label + 13)  # below the one before
        parts.append(
            f'<circle cx="{across:.1f}" cy="{down:.1f}" r="5" fill="{_colour(results, model)}"/>'
            f'<text x="{across + offset:.1f}" y="{lowest_label:.1f}" text-anchor="{anchor}">'
            f"{escape(_short(model))}</text>"
        )
    better = info(distortion).better
    remark = "against the rate" if better is None else f"against the rate, {better} is better"
    return _figure(_title(distortion), remark, _BOTTOM + 22, "".join(parts))


def _figure(title: str, remark: str, height: int, content: str) -> str:
    note = f' <span class="quiet">{remark}</span>' if remark else ""
    return (
        f"<figure><figcaption>{escape(title)}{note}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">{content}</svg>'
        "</figure>"
    )


def _tick(x: int, y: int, text: str, anchor: str) -> str:
    return f'<text class="quiet" x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>'


def _title(name: str) -> str:
    return f"{info(name).label}{f' in {info(name).unit}' if info(name).unit else ''}"


def _colour(results: Results, model: str) -> str:
    return COLOURS[list(results.models).index(model) % len(COLOURS)]


def _padded(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    # Never nothing, not even between equal values.
    margin = 0.15 * (high - low) or abs(high) * 0.1 or 1.0
    return low - margin, high + margin


def _short(name: str, length: int = 14) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"
