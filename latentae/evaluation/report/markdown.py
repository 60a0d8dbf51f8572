"""``results.md``: the table, what it means, and what it depends on."""

from __future__ import annotations

import json
from typing import Any

from latentae.evaluation.report.remarks import remarks
from latentae.evaluation.report.results import Results
from latentae.evaluation.report.table import info, number, present_metrics, render_markdown


def render(results: Results) -> str:
    """The whole file."""
    protocol = results.protocol
    parts = [
        f"# Reconstruction of {protocol.get('images', '?')} images, {protocol.get('name', '')}",
        render_markdown(results),
        "Bold: the best. In brackets: 95 % bootstrap intervals of the mean over images; for KID its "
        "deviation over subsets.",
        "\n".join(f"- **{info(name).label}**: {info(name).meaning}" for name in present_metrics(results)),
        *_remarks(results),
        *_percentiles(results),
        "## Protocol\n\n" + "\n".join(f"- {key}: {_text(value)}" for key, value in results.protocol.items()),
        "## Models\n\n" + _models(results),
    ]
    return "\n\n".join(parts) + "\n"


def _remarks(results: Results) -> list[str]:
    lines = [f"- {remark}" for remark in remarks(results)]
    return ["## To be read with care\n\n" + "\n".join(lines)] if lines else []


def _percentiles(results: Results) -> list[str]:
    tables = []
    metrics = {name for details in results.details.values() for name in details.percentiles}
    for name in (name for name in present_metrics(results) if name in metrics):
        rows = {model: details.percentiles.get(name, {}) for model, details in results.details.items()}
        percents = next(iter(rows.values())).keys()
        tables.append(
            f"| {info(name).label} | {' | '.join(f'{percent} %' for percent in percents)} |\n"
            f"| --- |{' ---: |' * len(percents)}\n"
            + "\n".join(
                f"| {model} | {' | '.join(number(row[percent], name) for percent in percents)} |"
                for model, row in rows.items()
                if row
            )
        )
    return ["## Percentiles over images", *tables] if tables else []


def _models(results: Results) -> str:
    lines = ["| model | class | parameters | factor | latent channels | weights |", "| --- |" + " --- |" * 5]
    lines += [
        f"| {name} | {details.class_name} | {details.parameters:,} | {details.downsampling_factor} | "
        f"{details.latent_channels} | `{details.sha256[:16]}` from {details.path} |"
        for name, details in results.details.items()
    ]
    return "\n".join(lines)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
