"""Compares two reports: where their numbers differ, and which entries of their protocols may explain it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from latentae.report.results import Results, Value, info, number
from latentae.report.tables import aligned, flat_values, shortened

# Entry of the protocol, or the beginning of its name → the effect of a difference on the numbers.
_MEANINGS = {
    "data.list_sha256": "other images",
    "data.pixels_sha256": "other pixels: other files, or other preparation",
    "data.": "where the images come from; the hashes tell whether they differ",
    "images": "a Fréchet distance falls with the number of images",
    "unreadable": "other images",
    "teacher.": "another teacher or scale of latents; says nothing about the models' own numbers",
    "networks.": "other weights of the metrics",
    "ifid": "iFID is measured in one of them only, or with other neighbours",
    "alpha": "transparent images are measured as composites",
    "precision": "the models ran in another precision",
    "cycle_images": "the drift is of other images",
    "code.": "other code, which may measure differently",
    "hardware": "by rounding only, and the speed",
    "batch_size": "by rounding only",
    "": "other preparation of the images",
}


@dataclass(frozen=True)
class Difference:
    """An entry in which two protocols differ, and the effect of that on the numbers.

    Attributes:
        entry: its name, with dots between levels.
        first, second: its values as JSON; "-" if it is missing.
    """

    entry: str
    first: str
    second: str
    meaning: str


def differences(first: Results, second: Results) -> list[Difference]:
    """Returns the entries in which two protocols differ."""
    one, other = dict(_entries(first.protocol)), dict(_entries(second.protocol))
    return [
        Difference(entry, one.get(entry, "-"), other.get(entry, "-"), _meaning(entry))
        for entry in {**one, **other}
        if one.get(entry) != other.get(entry)
    ]


def render(first: Results, second: Results) -> str:
    """Returns, for a terminal, the differences of the protocols, and the metrics of the shared models.

    Raises:
        ValueError: no model has the same name in both.
    """
    shared = [model for model in first.models if model in second.models]
    if not shared:
        raise ValueError(
            f"no model has the same name in both reports: the first is of {', '.join(first.models)}, the "
            f"second of {', '.join(second.models)}; evaluate with name=MODEL to name them alike"
        )
    found = differences(first, second)
    rows = [
        [d.entry, *(shortened(text.strip('"'), 28) for text in (d.first, d.second)), d.meaning] for d in found
    ]
    parts = [
        "The protocols differ:\n" + aligned([["", "first", "second", "meaning"], *rows])
        if rows
        else "The protocols are equal.",
        *(_metrics(model, first, second) for model in shared),
        *(_fit(model, first, second) for model in shared if model in first.fit and model in second.fit),
    ]
    return "\n\n".join(parts)


def _metrics(model: str, first: Results, second: Results) -> str:
    one, other = first.models[model], second.models[model]
    rows = [
        [
            info(name).label,
            number(one[name].value, name),
            number(other[name].value, name),
            *_change(name, one, other),
        ]
        for name in one
        if name in other
    ]
    hashes = {results.details[model].sha256 for results in (first, second) if model in results.details}
    weights = "the same weights" if len(hashes) == 1 else "OTHER WEIGHTS"
    return f"{model}, {weights}:\n" + aligned([["", "first", "second", "change", "intervals"], *rows])


def _fit(model: str, first: Results, second: Results) -> str:
    """Returns how a model fits a denoiser of the teacher in both reports."""
    fits = [results.fit[model] for results in (first, second)]
    one, other = (flat_values(fit) for fit in fits)
    rows = [
        [
            label,
            number(value.value, name),
            number(other[label][1].value, name),
            *_change(name, {name: value}, {name: other[label][1]}),
        ]
        for label, (name, value) in one.items()
        if label in other
    ]
    moved = [fit.relative_mse for fit in fits]
    rows.append(["relative MSE of latents", *(f"{x:.4f}" for x in moved), f"{moved[1] - moved[0]:+.4f}", ""])
    rows.append(["verdict", *(fit.verdict for fit in fits), "", ""])
    title = f"{model} and denoisers of {first.teacher} (first) and {second.teacher} (second)"
    return f"{title}:\n" + aligned([["", "first", "second", "change", "intervals"], *rows])


def _change(name: str, one: dict[str, Value], other: dict[str, Value]) -> list[str]:
    a, b = one[name], other[name]
    if a.value == b.value:
        return ["0", ""]
    change = f"{b.value - a.value:+.{info(name).digits}f}"
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return [change, ""]
    return [change, "overlap" if a.low <= b.high and b.low <= a.high else "apart"]


def _entries(data: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in data.items():
        if isinstance(value, dict):
            yield from _entries(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value, ensure_ascii=False)


def _meaning(entry: str) -> str:
    return next(meaning for name, meaning in _MEANINGS.items() if entry.startswith(name))
