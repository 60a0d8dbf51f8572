"""The part of a report's page that shows pictures, and the data that its script needs."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image, features

from latentae.evaluation.report.results import Picture, Results
from latentae.evaluation.report.table import info, number

AMPLIFICATION = 4
"""By how much differences are shown larger than they are."""

# Pixels a side of what the page shows of a picture: more would make it too large to pass on.
_LARGEST_SIDE = 768
# Of an image's own values those that fit beside it.
_SHOWN_METRICS = ("psnr", "ssim", "lpips_alex", "lpips_vgg")
_KINDS = {"": "all", "worst": "worst", "median": "median", "random": "random"}


def browser(results: Results) -> str:
    """The elements that the page's script brings to life; "" where there are no pictures."""
    if not results.pictures:
        return ""
    filters = "".join(
        f'<button type="button" data-filter="{kind}">{label}</button>'
        for kind, label in _KINDS.items()
        if any(why.startswith(kind) for picture in results.pictures for why in picture.why)
    )
    models = "".join(
        f'<button type="button" data-model="{position}">{escape(model)}</button>'
        for position, model in enumerate(results.models)
    )
    others = "".join(
        f'<option value="{position}">{escape(model)}</option>'
        for position, model in enumerate(results.models)
    )
    thumbnails = "".join(
        f'<button type="button" data-picture="{position}" aria-label="{escape(picture.name)}">'
        f'<img alt="" data-source="{escape(picture.original)}"></button>'
        for position, picture in enumerate(results.pictures)
    )
    return f"""
<div class="controls" role="group" aria-label="which pictures">{filters}</div>
<div class="controls" role="group" aria-label="what is shown">
<label>left <select id="left"><option value="-1">original</option>{others}</select></label>
<span class="quiet">right</span>{models}
<button type="button" id="toggle-difference">difference &times; {AMPLIFICATION}</button>
<label>zoom <select id="zoom"><option value="0">fit</option><option value="1">1&times;</option>
<option value="2">2&times;</option><option value="4">4&times;</option></select></label></div>
<p id="caption" class="caption" aria-live="polite"></p>
<div class="stage" id="stage"><div class="layers" id="layers">
<img id="before" alt=""><img id="after" class="over" alt="">
<canvas id="difference" class="over" hidden></canvas><div id="edge" class="edge"></div></div></div>
<input class="wipe" id="wipe" type="range" min="0" max="100" value="50" step="0.5"
aria-label="wipe: where the left picture ends and the right one begins">
<div class="scroll"><table id="values"></table></div>
<p class="quiet">Drag the line, or use the keys: <kbd>←</kbd> <kbd>→</kbd> picture, <kbd>1</kbd>-<kbd>9</kbd>
model, <kbd>d</kbd> difference, <kbd>z</kbd> zoom.</p>
<div class="thumbnails">{thumbnails}</div>"""


def picture_data(results: Results, folder: Path) -> dict[str, Any]:
    """What the page's script needs; each file of ``folder`` once, as a data URI."""
    names = {picture.original for picture in results.pictures}
    names |= {name for picture in results.pictures for name in picture.reconstructions.values()}
    return {
        "amplification": AMPLIFICATION,
        "models": list(results.models),
        "files": {name: data_uri(folder / name) for name in sorted(names)},
        "pictures": [_entry(picture, folder) for picture in results.pictures],
    }


def data_uri(path: Path) -> str:
    """A picture without loss, its central part where it is large."""
    with Image.open(path) as picture:
        shown = picture.crop(_central_box(picture.size))
    encoded = io.BytesIO()
    if features.check("webp"):  # about a third smaller, and not in every build of Pillow
        shown.save(encoded, "WEBP", lossless=True, quality=60, method=3, exact=True)
        return f"data:image/webp;base64,{base64.b64encode(encoded.getvalue()).decode()}"
    shown.save(encoded, "PNG")
    return f"data:image/png;base64,{base64.b64encode(encoded.getvalue()).decode()}"


def _entry(picture: Picture, folder: Path) -> dict[str, Any]:
    with Image.open(folder / picture.original) as original:
        width, height = original.size
    whole = max(width, height) <= _LARGEST_SIDE
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


def _central_box(size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, upper, right and lower edge."""
    (width, height), (left, top) = (
        (min(side, _LARGEST_SIDE) for side in size),
        (max(0, side - _LARGEST_SIDE) // 2 for side in size),
    )
    return left, top, left + width, top + height
