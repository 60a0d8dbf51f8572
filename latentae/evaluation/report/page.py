"""``report.html``: one page that needs no network, with the numbers and a browser of pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from latentae.evaluation.report import tables
from latentae.evaluation.report.browser import browser, picture_data
from latentae.evaluation.report.charts import bar_charts, rate_distortion_charts
from latentae.evaluation.report.document import asset, document, section
from latentae.evaluation.report.results import Results

_RATE = (
    "The rate of a model with codes is what fixed-length codes take; of one without, KL(q‖N(0, I)), which "
    "says little where that was not trained."
)


def render(results: Results, folder: Path) -> str:
    """The whole page; pictures are read from ``folder`` and embedded."""
    protocol = results.protocol
    title = f"Reconstruction of {protocol.get('images', '?')} images"
    subtitle = " · ".join([str(protocol.get("name", "")), *results.models])
    sections = [
        section("Metrics", tables.metrics(results)),
        section("To be read with care", tables.remarks(results)),
        section("Pictures", browser(results)),
        section("Charts", _charts(bar_charts(results))),
        section("Rate and distortion", _charts(rate_distortion_charts(results), _RATE)),
        section("Drift", tables.drift(results)),
        section("Percentiles over images", tables.percentiles(results)),
        section("Latents", tables.latents(results)),
        section("Models", tables.models(results)),
        section("Protocol", tables.definitions(protocol)),
    ]
    pictures = _script_json(picture_data(results, folder))
    scripts = (
        f'<script type="application/json" id="pictures-data">{pictures}</script>\n'
        f"<script>{asset('report.js')}</script>"
    )
    button = '<button id="theme" type="button">light / dark</button>'
    return document(title, subtitle, sections, controls=button, end=scripts)


def _charts(charts: list[str], note: str = "") -> str:
    if not charts:
        return ""
    return f'<div class="charts">{"".join(charts)}</div><p class="quiet">{note}</p>'


def _script_json(data: dict[str, Any]) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
