"""The numbers of several models as rows, for a terminal and for the templates of files and pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from latentae.report.results import METRICS, MetricInfo, Results, TeacherFit, Value, info, number

_PARAMETERS = MetricInfo(
    "parameters", "M", 2, None, "Weights of the encoder, the decoder and all else, in millions"
)
# Of how well models fit a denoiser of their teacher.
_FIT_METRICS = ("psnr", "psnr_loss", "ssim", "lpips_alex")
_FIT_CHANNELS = {
    "mean_shift": "mean shift",
    "std_ratio": "ratio of deviations",
    "correlation": "correlation",
    "relative_mse": "relative MSE",
}


@dataclass(frozen=True)
class Cell:
    """A number of a table as text ("-" for none), its interval ("" for none), and whether it is best."""

    text: str
    interval: str
    best: bool

    def __str__(self) -> str:
        return f"{self.text} {self.interval}".rstrip()


@dataclass(frozen=True)
class Row:
    """One metric of all models."""

    name: str
    info: MetricInfo
    cells: list[Cell]


@dataclass(frozen=True)
class Table:
    """A table of plain texts under a title: a head, and rows whose first cell is their name."""

    title: str
    head: list[str]
    rows: list[list[str]]


def present_metrics(results: Results) -> list[str]:
    """Returns the metrics that at least one model has, in the order in which reports show them."""
    found = {name for metrics in results.models.values() for name in metrics}
    return [*(name for name in METRICS if name in found), *sorted(found - METRICS.keys())]


def metric_rows(results: Results) -> list[Row]:
    """Returns one row per metric, and one of the parameters if they are known, with one cell per model."""
    rows, models = [], shown_models(results)
    for name in present_metrics(results):
        best = best_models(results, name)
        cells = [_cell(results.models[model].get(name), name, model in best) for model in models]
        rows.append(Row(name, info(name), cells))
    if results.details:
        known = (results.details.get(model) for model in models)
        counts = [_PARAMETERS.number(d.parameters / 1e6) if d else "-" for d in known]
        rows.append(Row("parameters", _PARAMETERS, [Cell(text, "", False) for text in counts]))
    return rows


def best_models(results: Results, name: str) -> set[str]:
    """Returns the model, of each group, whose value of a metric is better than that of all others.

    Better means that its interval overlaps no other one's, and its number differs as printed. A value without
    an interval counts as its own interval. None is better where neither way is, or where there is no other.
    """
    better = info(name).better
    best: set[str] = set()
    if better is None:
        return best
    for members in results.groups.values() or [list(results.models)]:
        values = {
            model: results.models[model][name]
            for model in members
            if name in results.models[model] and not math.isnan(results.models[model][name].value)
        }
        order = sorted(values, key=lambda model: values[model].value, reverse=better == "higher")
        if len(order) > 1 and all(_are_apart(values[order[0]], values[m], name) for m in order[1:]):
            best.add(order[0])
    return best


def _are_apart(one: Value, other: Value, name: str) -> bool:
    """Returns whether two intervals do not overlap and the numbers differ as printed."""
    (low, high), (other_low, other_high) = (
        (value.value if value.low is None else value.low, value.value if value.high is None else value.high)
        for value in (one, other)
    )
    return (low > other_high or high < other_low) and number(one.value, name) != number(other.value, name)


def shown_models(results: Results) -> list[str]:
    """Returns the models in the order of the columns: as they were given, or group by group."""
    return [model for members in results.groups.values() for model in members] or list(results.models)


def model_labels(results: Results) -> list[str]:
    """Returns the columns' names, with a mark on the teacher."""
    return [f"{model} (teacher)" if model == results.teacher else model for model in shown_models(results)]


def percentile_tables(results: Results) -> list[Table]:
    """Returns, for each metric that has percentiles, a table with one row per model."""
    tables = []
    named = {name for details in results.details.values() for name in details.percentiles}
    for name in (name for name in present_metrics(results) if name in named):
        found = {m: d.percentiles[name] for m, d in results.details.items() if d.percentiles.get(name)}
        percents = list(next(iter(found.values())))
        rows = [[model, *(number(values[p], name) for p in percents)] for model, values in found.items()]
        tables.append(Table(info(name).label, [f"{percent} %" for percent in percents], rows))
    return tables


def drift_table(results: Results) -> Table | None:
    """Returns PSNR after some rounds of encoding and decoding; None where it was not measured."""
    found = {model: details.cycle_psnr for model, details in results.details.items() if details.cycle_psnr}
    if not found:
        return None
    rounds = list(next(iter(found.values())))
    rows = [[model, *(number(values[count], "psnr") for count in rounds)] for model, values in found.items()]
    return Table("rounds", rounds, rows)


def latents_table(results: Results) -> Table | None:
    """Returns mean, deviation and kurtosis per latent channel; None where they were not measured."""
    rows = [
        [f"{model}, {moment}", *(f"{value:.3g}" for value in values)]
        for model, details in results.details.items()
        for moment, values in details.latents.items()
    ]
    widest = max(map(len, rows), default=1) - 1
    return Table("channel", [str(channel) for channel in range(widest)], rows) if rows else None


def decoding_table(results: Results) -> Table | None:
    """Returns the decoders on each other's latents, below each on its own; None where there is no teacher."""
    if results.teacher is None:
        return None
    teacher = results.teacher
    rows = [_fit_row(f"{teacher} decodes its own latents", results.models[teacher])]
    for model, fit in results.fit.items():
        rows += [
            _fit_row(f"{model} decodes its own latents", results.models[model]),
            _fit_row(f"{model} decodes latents of {teacher}", fit.new_decoder_on_old_latents),
            _fit_row(f"{teacher} decodes latents of {model}", fit.old_decoder_on_new_latents),
        ]
    head = [f"{info(name).label}{f', {info(name).unit}' if info(name).unit else ''}" for name in _FIT_METRICS]
    return Table("", head, rows)


def channels_table(results: Results) -> Table | None:
    """Returns how far each channel of the latents moved; None where there is no teacher."""
    rows = [
        [f"{model}, {label}", *(_fit_number(value) for value in fit.channels[name])]
        for model, fit in results.fit.items()
        for name, label in _FIT_CHANNELS.items()
    ]
    if not rows:
        return None
    return Table("channel", [str(channel) for channel in range(len(rows[0]) - 1)], rows)


def advice(results: Results) -> list[str]:
    """Returns the advice on each model."""
    return [fit.advice for fit in results.fit.values()]


def render_fit_terminal(results: Results) -> str:
    """Returns the decoders on each other's latents as columns of text, and the advice at the end."""
    table = decoding_table(results)
    if table is None:
        return ""
    return "\n\n".join([aligned([[table.title, *table.head], *table.rows]), *advice(results)])


def flat_values(fit: TeacherFit) -> dict[str, tuple[str, Value]]:
    """Returns label → metric and value of all means over images, to compare two reports."""
    directions = {
        "new decoder, old latents": fit.new_decoder_on_old_latents,
        "old decoder, new latents": fit.old_decoder_on_new_latents,
    }
    return {
        f"{direction}: {info(name).label}": (name, value)
        for direction, values in directions.items()
        for name, value in values.items()
    }


def caveats(results: Results) -> list[str]:
    """Returns the models' remarks, each once; a remark that not all models share names its models."""
    found: dict[str, list[str]] = {}
    for model, details in results.details.items():
        for remark in details.remarks:
            found.setdefault(remark, []).append(model)
    return [
        remark if len(models) == len(results.models) else f"{remark} ({', '.join(models)})"
        for remark, models in found.items()
    ]


def render_terminal(results: Results) -> str:
    """Returns one line per metric with one column per model; a star marks what is better than all others."""
    rows = [
        [
            f"{row.info.label}{f' ({row.info.unit})' if row.info.unit else ''}",
            *(f"{cell} *" if cell.best else f"{cell}  " for cell in row.cells),
        ]
        for row in metric_rows(results)
    ]
    groups = [["", *_group_labels(results)]] if results.groups else []
    return aligned([*groups, ["", *model_labels(results)], *rows])


def render_markdown(results: Results) -> str:
    """Returns the metrics as a Markdown table; what is better than all others is bold."""
    lines = [f"| metric | {' | '.join(model_labels(results))} |", f"| --- |{' ---: |' * len(results.models)}"]
    if results.groups:
        lines.append(f"| group | {' | '.join(_group_labels(results))} |")
    for row in metric_rows(results):
        cells = [f"**{cell}**" if cell.best else str(cell) for cell in row.cells]
        unit = f", {row.info.unit}" if row.info.unit else ""
        lines.append(f"| {row.info.label}{unit} | {' | '.join(cells)} |")
    return "\n".join(lines)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows of equal length as columns of text, the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if column == 0 else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def shortened(text: str, length: int) -> str:
    """Returns a text, cut off where it is longer than ``length`` letters."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _group_labels(results: Results) -> list[str]:
    """Returns the group of each column."""
    return [group for group, members in results.groups.items() for _ in members]


def _cell(value: Value | None, name: str, best: bool) -> Cell:
    if value is None:
        return Cell("-", "", False)
    interval = ""
    if value.low is not None and value.high is not None:
        interval = f"[{number(value.low, name)}, {number(value.high, name)}]"
    return Cell(number(value.value, name), interval, best)


def _fit_row(label: str, values: dict[str, Value]) -> list[str]:
    return [label, *(number(values[name].value, name) if name in values else "-" for name in _FIT_METRICS)]


def _fit_number(value: float) -> str:
    return "-" if value != value else f"{value:.3f}"  # NaN of a constant channel
