"""``report.html``: one page that needs no network, with the numbers and a browser of pictures."""

from __future__ import annotations

import json
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from latentae.evaluation.report import tables
from latentae.evaluation.report.browser import browser, picture_data
from latentae.evaluation.report.charts import bar_charts, rate_distortion_charts
from latentae.evaluation.report.results import Results

# Nothing may be fetched, whatever a name in the results might look like.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


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
        _section("Metrics", tables.metrics(results)),
        _section("To be read with care", tables.remarks(results)),
        _section("Pictures", browser(results)),
        _section("Charts", _charts(bar_charts(results))),
        _section("Rate and distortion", _charts(rate_distortion_charts(results), _RATE)),
        _section("Drift", tables.drift(results)),
        _section("Percentiles over images", tables.percentiles(results)),
        _section("Latents", tables.latents(results)),
        _section("Models", tables.models(results)),
        _section("Protocol", tables.definitions(protocol)),
    ]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>{_asset("report.css")}</style>
</head>
<body>
<header>
<div><h1>{escape(title)}</h1><div class="quiet">{escape(subtitle)}</div></div>
<button id="theme" type="button">light / dark</button>
</header>
<main>
{"".join(sections)}
</main>
<script type="application/json" id="pictures-data">{_script_json(picture_data(results, folder))}</script>
<script>{_asset("report.js")}</script>
</body>
</html>
"""


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>" if content else ""


def _charts(charts: list[str], note: str = "") -> str:
    if not charts:
        return ""
    return f'<div class="charts">{"".join(charts)}</div><p class="quiet">{note}</p>'


def _script_json(data: dict[str, Any]) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")


def _asset(name: str) -> str:
    return files(__package__).joinpath("assets", name).read_text(encoding="utf-8")
