"""Curves of a probe as SVG, in the style of an evaluation's charts."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from latentae.diffusion.training import CurvePoint
from latentae.evaluation.report.charts import COLOURS

_WIDTH, _HEIGHT = 340, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 330, 12, 170
_SHAPES = ("", "6 3", "2 3", "8 3 2 3")  # so that curves are told apart without colours, too


def loss_charts(curves: dict[str, Sequence[CurvePoint]]) -> list[str]:
    """Two figures, a curve a model: the relative loss, and the loss as it is."""
    relative = {name: [(p.step, p.relative_loss) for p in curve] for name, curve in curves.items()}
    plain = {name: [(p.step, p.validation_loss) for p in curve] for name, curve in curves.items()}
    return [
        _chart("Held-out flow loss, relative", "1: nothing learned", relative),
        _chart("Held-out flow loss", "each in its own latent space", plain),
    ]


def _chart(title: str, remark: str, curves: dict[str, list[tuple[int, float]]]) -> str:
    points = [point for curve in curves.values() for point in curve]
    if not points:
        return ""
    last = max(step for step, _ in points)
    values = [value for _, value in points]
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = low - margin, high + margin

    def place(step: int, value: float) -> str:
        across = _LEFT + (_RIGHT - _LEFT) * step / last
        down = _BOTTOM - (_BOTTOM - _TOP) * (value - low) / (high - low)
        return f"{across:.1f} {down:.1f}"

    lines = [
        f'<path d="M{" L".join(place(*point) for point in curve)}" fill="none" stroke-width="2" '
        f'stroke="{COLOURS[number % len(COLOURS)]}" stroke-dasharray="{_SHAPES[number % len(_SHAPES)]}"/>'
        for number, curve in enumerate(curves.values())
        if curve
    ]
    axes = (
        f'<path class="axis" d="M{_LEFT} {_TOP}V{_BOTTOM}H{_RIGHT}" fill="none"/>'
        f'<text class="quiet" x="{_LEFT - 5}" y="{_BOTTOM}" text-anchor="end">{low:.2f}</text>'
        f'<text class="quiet" x="{_LEFT - 5}" y="{_TOP + 8}" text-anchor="end">{high:.2f}</text>'
        f'<text class="quiet" x="{_LEFT}" y="{_BOTTOM + 16}">0</text>'
        f'<text class="quiet" x="{_RIGHT}" y="{_BOTTOM + 16}" text-anchor="end">{last} steps</text>'
    )
    return (
        f'<figure><figcaption>{escape(title)} <span class="quiet">{escape(remark)}</span></figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">{axes}'
        f"{''.join(lines)}</svg>{_legend(list(curves))}</figure>"
    )


def _legend(names: list[str]) -> str:
    """The models' names below the chart, where they may wrap."""
    entries = "".join(
        '<span style="margin-right:1em;overflow-wrap:anywhere">'
        '<svg viewBox="0 0 24 8" style="display:inline-block;width:24px;height:8px" aria-hidden="true">'
        f'<path d="M0 4H24" stroke="{COLOURS[number % len(COLOURS)]}" stroke-width="3" '
        f'stroke-dasharray="{_SHAPES[number % len(_SHAPES)]}"/></svg> {escape(name)}</span>'
        for number, name in enumerate(names)
    )
    return f'<div class="quiet">{entries}</div>'
