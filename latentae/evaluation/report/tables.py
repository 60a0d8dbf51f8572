"""The tables of a report's page."""

from __future__ import annotations

import json
from collections.abc import Iterable
from html import escape
from typing import Any

from latentae.evaluation.report.remarks import remarks as all_remarks
from latentae.evaluation.report.results import Results, Value
from latentae.evaluation.report.table import best_models, info, number, present_metrics

_NOTE = (
    "Bold: the best. In brackets: 95 % bootstrap intervals of the mean over images; for KID, one standard "
    "deviation over subsets."
)


def metrics(results: Results) -> str:
    """One row a metric, one column a model, and what the metrics mean."""
    rows, meanings = [], []
    for name in present_metrics(results):
        best = best_models(results, name)
        label, unit = escape(info(name).label), escape(info(name).unit)
        cells = [_cell(values.get(name), name, model in best) for model, values in results.models.items()]
        rows.append(f"<tr><th>{label}{f' <small>{unit}</small>' if unit else ''}</th>{''.join(cells)}</tr>")
        way = {"higher": "; higher is better", "lower": "; lower is better", None: ""}[info(name).better]
        meanings.append(f"<dt>{label}</dt><dd>{escape(info(name).meaning)}{way}</dd>")
    return (
        _scrolling(["metric", *results.models], rows)
        + f'<p class="quiet">{_NOTE}</p>'
        + f"<details><summary>What the metrics mean</summary><dl>{''.join(meanings)}</dl></details>"
    )


def remarks(results: Results) -> str:
    """What was left out or must be read with care."""
    items = "".join(f"<li>{escape(remark)}</li>" for remark in all_remarks(results))
    return f"<ul>{items}</ul>" if items else ""


def drift(results: Results) -> str:
    """PSNR after some rounds of encoding and decoding."""
    found = {model: details.cycle_psnr for model, details in results.details.items() if details.cycle_psnr}
    if not found:
        return ""
    rounds = list(next(iter(found.values())))
    rows = [
        _row(model, [number(values[count], "psnr") for count in rounds]) for model, values in found.items()
    ]
    images = results.protocol.get("cycle_images", "some")
    note = (
        f"PSNR in dB against the original after n rounds of encoding and decoding, of {images} images spread "
        "over the data: what is left of a picture that is edited again and again."
    )
    return _scrolling(["rounds", *rounds], rows) + f'<p class="quiet">{note}</p>'


def percentiles(results: Results) -> str:
    """For each metric a table: one row a model."""
    tables = []
    named = {name for details in results.details.values() for name in details.percentiles}
    for name in (name for name in present_metrics(results) if name in named):
        found = {m: d.percentiles[name] for m, d in results.details.items() if name in d.percentiles}
        percents = list(next(iter(found.values())))
        rows = [
            _row(model, [number(values[percent], name) for percent in percents])
            for model, values in found.items()
        ]
        tables.append(_scrolling([info(name).label, *(f"{percent} %" for percent in percents)], rows))
    return "".join(tables)


def latents(results: Results) -> str:
    """Mean, deviation and kurtosis of each channel of the latents."""
    rows = [
        _row(f"{model}, {moment}", [f"{value:.3g}" for value in values])
        for model, details in results.details.items()
        for moment, values in details.latents.items()
    ]
    widest = max((len(v) for d in results.details.values() for v in d.latents.values()), default=0)
    return _scrolling(["channel", *(str(channel) for channel in range(widest))], rows) if rows else ""


def models(results: Results) -> str:
    """What was measured."""
    return "".join(
        f"<h3>{escape(model)}</h3>"
        + definitions(
            {
                "class": details.class_name,
                "path": details.path,
                "SHA-256 of the weights": details.sha256,
                "parameters": f"{details.parameters:,}",
                "downsampling factor": details.downsampling_factor,
                "latent channels": details.latent_channels,
            }
        )
        for model, details in results.details.items()
    )


def definitions(entries: dict[str, Any]) -> str:
    """Names and values, one beside the other."""
    rows = "".join(f"<dt>{escape(str(key))}</dt><dd>{_text(value)}</dd>" for key, value in entries.items())
    return f"<dl>{rows}</dl>"


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return definitions(value)
    if isinstance(value, list):
        return "<br>".join(_text(entry) for entry in value) or "none"
    return escape(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _cell(value: Value | None, name: str, is_best: bool) -> str:
    start = '<td class="best">' if is_best else "<td>"
    if value is None:
        return f"{start}-</td>"
    text = number(value.value, name)
    if value.low is not None and value.high is not None:
        text += f" <small>[{number(value.low, name)}, {number(value.high, name)}]</small>"
    return f"{start}{text}</td>"


def _row(label: str, cells: Iterable[str]) -> str:
    return f"<tr><th>{escape(label)}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _scrolling(head: Iterable[str], rows: Iterable[str]) -> str:
    """A table that scrolls by itself where the window is narrower than it."""
    cells = "".join(f"<th>{escape(text)}</th>" for text in head)
    return (
        '<div class="scroll" tabindex="0"><table>'
        f"<thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
