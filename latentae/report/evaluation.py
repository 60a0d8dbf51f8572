"""The report of an evaluation: ``results.json``, ``results.md`` and ``report.html``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from PIL import Image

from latentae.report import figures
from latentae.report.page import LARGEST_SIDE, PageChart, data_uri, render, write_page
from latentae.report.results import Picture, Results, info, number
from latentae.report.tables import (
    advice,
    best_models,
    caveats,
    channels_table,
    decoding_table,
    drift_table,
    latents_table,
    metric_rows,
    model_labels,
    percentile_tables,
    present_metrics,
    render_markdown,
    shown_models,
)

AMPLIFICATION = 4
"""The factor by which the page shows differences larger than they are."""

# The values of an image that fit beside it.
_SHOWN_METRICS = ("psnr", "ssim", "lpips_alex", "lpips_vgg", "delta_e")
_KINDS = {"": "all", "worst": "worst", "median": "median", "random": "random"}
_RATES = ("bits_per_pixel", "kl_bits_per_pixel")
_DISTORTIONS = ("psnr", "lpips_alex", "delta_e", "rfid", "fd_vgg16", "fd_dinov2", "clip_mmd")


def write_report(results: Results, folder: Path) -> None:
    """Writes the three files into ``folder``, each whole or not at all.

    Args:
        results: whose pictures lie in ``folder``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_page(folder / "results.md", render_report_markdown(results))
    write_page(folder / "report.html", render_page(results, folder))
    write_page(folder / "results.json", results.to_json())  # the last: it marks a report as finished


def render_page(results: Results, folder: Path) -> str:
    """Returns the page; pictures are read from ``folder`` and embedded."""
    found = {why for picture in results.pictures for why in picture.why}
    return render(
        "evaluation.html",
        **_tables(results),
        labels=model_labels(results),
        kinds={kind: label for kind, label in _KINDS.items() if any(why.startswith(kind) for why in found)},
        amplification=AMPLIFICATION,
        crops=crop_strips(results, folder),
        bars=bar_charts(results),
        rate_distortion=rate_distortion_charts(results),
        drift=drift_table(results),
        latents=latents_table(results),
        pictures=picture_data(results, folder),
    )


def render_report_markdown(results: Results) -> str:
    """Returns ``results.md``: the table, what it means, and what it depends on."""
    return render("evaluation.md", **_tables(results), table=render_markdown(results))


def _tables(results: Results) -> dict[str, Any]:
    """Returns what both templates show."""
    return {
        "results": results,
        "rows": metric_rows(results),
        "fit": decoding_table(results),
        "fit_channels": channels_table(results),
        "advice": advice(results),
        "caveats": caveats(results),
        "percentiles": percentile_tables(results),
    }


def bar_charts(results: Results) -> list[PageChart]:
    """Returns one chart per metric: one bar per model, from zero, with its interval."""
    charts = []
    for name in present_metrics(results):
        values = {model: metrics[name] for model, metrics in results.models.items() if name in metrics}
        finite = {model: value for model, value in values.items() if math.isfinite(value.value)}
        if finite:
            drawn = figures.bars(
                finite, text=info(name).number, colours=_colours(results), best=best_models(results, name)
            )
            charts.append(_page_chart(name, drawn))
    return charts


def rate_distortion_charts(results: Results) -> list[PageChart]:
    """Returns a scatter plot of each distortion against the rate, where two models or more have both.

    The rate is that of fixed-length codes, or the KL divergence of a model without codes, in bits per pixel.
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
            drawn = figures.scatter(
                points, x_name="bits/px", text=info(distortion).number, colours=_colours(results)
            )
            charts.append(_page_chart(distortion, drawn, "against the rate"))
    return charts


def crop_strips(results: Results, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Returns model → its worst crops, each with its pictures as data URIs, the original first."""
    strips: dict[str, list[dict[str, Any]]] = {}
    for crop in results.crops:
        files = {"original": crop.original} | {
            model: crop.reconstructions[model]
            for model in shown_models(results)
            if model in crop.reconstructions
        }
        strips.setdefault(crop.model, []).append(
            {
                "delta_e": number(crop.delta_e, "delta_e"),
                "place": f"{crop.name}, {crop.left} px from the left, {crop.top} from the top",
                "pictures": [{"label": name, "uri": data_uri(folder / file)} for name, file in files.items()],
            }
        )
    return strips


def picture_data(results: Results, folder: Path) -> dict[str, Any]:
    """Returns what the page's script needs; each file of ``folder`` once, as a data URI."""
    names = {picture.original for picture in results.pictures}
    names |= {name for picture in results.pictures for name in picture.reconstructions.values()}
    return {
        "amplification": AMPLIFICATION,
        "models": list(results.models),
        "files": {name: data_uri(folder / name) for name in sorted(names)},
        "pictures": [_entry(picture, folder) for picture in results.pictures],
    }


def _entry(picture: Picture, folder: Path) -> dict[str, Any]:
    with Image.open(folder / picture.original) as original:
        width, height = original.size
    whole = max(width, height) <= LARGEST_SIDE
    return {
        "name": picture.name,
        "why": picture.why,
        "part": "" if whole else f"the middle of {width} x {height} pixels",
        "original": picture.original,
        "reconstructions": picture.reconstructions,
        "values": {
            model: {info(name).label: number(values[name], name) for name in _SHOWN_METRICS if name in values}
            for model, values in picture.values.items()
        },
    }


def _page_chart(name: str, drawn: Any, about: str = "") -> PageChart:
    metric = info(name)
    title = f"{metric.label}{f' in {metric.unit}' if metric.unit else ''}"
    better = f"{metric.better} is better" if metric.better else ""
    return PageChart(
        title, ", ".join(filter(None, (about, better))), figures.svg(drawn, f"{title} {about}".strip())
    )


def _colours(results: Results) -> dict[str, str]:
    return {m: figures.COLOURS[i % len(figures.COLOURS)] for i, m in enumerate(results.models)}
