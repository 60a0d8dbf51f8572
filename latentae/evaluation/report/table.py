"""The metrics of several models as rows of text, for a terminal and for Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from latentae.evaluation.report.metric_info import METRICS, MetricInfo
from latentae.evaluation.report.results import Results, Value

_UNKNOWN = MetricInfo("", "", 4, None, "")
_NOTHING = "-"


def present_metrics(results: Results) -> list[str]:
    """The metrics that at least one model has, in the order reports show them."""
    found = {name for metrics in results.models.values() for name in metrics}
    return [*(name for name in METRICS if name in found), *sorted(found - METRICS.keys())]


def info(name: str) -> MetricInfo:
    """How a metric is shown; one that is not known is shown by its name."""
    return METRICS.get(name) or MetricInfo(name, _UNKNOWN.unit, _UNKNOWN.digits, None, "")


def number(value: float, name: str) -> str:
    """A number with its metric's digits; "-" for what is no number."""
    if math.isnan(value):
        return _NOTHING
    return "∞" if math.isinf(value) else f"{value:.{info(name).digits}f}"


def cell(value: Value | None, name: str) -> str:
    """A value with its interval: ``27.31 [27.10, 27.52]``."""
    if value is None:
        return _NOTHING
    text = number(value.value, name)
    if value.low is None or value.high is None:
        return text
    return f"{text} [{number(value.low, name)}, {number(value.high, name)}]"


def best_models(results: Results, name: str) -> set[str]:
    """The models whose value of a metric is the best as printed; none where neither way is better."""
    better = info(name).better
    values = {
        model: metrics[name].value
        for model, metrics in results.models.items()
        if name in metrics and not math.isnan(metrics[name].value)
    }
    if better is None or len(values) < 2:
        return set()
    best = max(values.values()) if better == "higher" else min(values.values())
    return {model for model, value in values.items() if number(value, name) == number(best, name)}


def render_terminal(results: Results) -> str:
    """One row a metric, one column a model; a star marks the best."""
    header = ["", *results.models]
    rows = []
    for name in present_metrics(results):
        best = best_models(results, name)
        cells = [
            cell(metrics.get(name), name) + (" *" if model in best else "  ")
            for model, metrics in results.models.items()
        ]
        unit = info(name).unit
        rows.append([f"{info(name).label}{f' ({unit})' if unit else ''}", *cells])
    return aligned([header, *rows])


def render_markdown(results: Results) -> str:
    """The same table as Markdown, the best in bold."""
    lines = [f"| metric | {' | '.join(results.models)} |", f"| --- |{' ---: |' * len(results.models)}"]
    for name in present_metrics(results):
        best = best_models(results, name)
        cells = [
            f"**{cell(metrics.get(name), name)}**" if model in best else cell(metrics.get(name), name)
            for model, metrics in results.models.items()
        ]
        unit = info(name).unit
        lines.append(f"| {info(name).label}{f', {unit}' if unit else ''} | {' | '.join(cells)} |")
    return "\n".join(lines)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equal length as columns of text: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if column == 0 else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
