"""The results of a probe and their files: ``probe.html``, ``probe.md`` and ``results.json``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from latentae.files import write_json
from latentae.probe.folder import RESULTS
from latentae.probe.training import CurvePoint
from latentae.report import figures
from latentae.report.page import PageChart, data_uri, render, write_page
from latentae.report.results import Results, Value, finite
from latentae.report.tables import metric_rows, render_markdown


@dataclass
class ModelResult:
    """The results of one model.

    Attributes:
        path, class_name, sha256: of the model; the hash is of its weights.
        latent_shape: (c, h, w).
        patch_size: latent positions along a side of one of the denoiser's tokens.
        parameters: of the denoiser.
        metrics: by name; ``METRICS`` of the report explains them.
        curve: of the training.
        sample_seconds: the time per generated image.
        pictures: ``samples``, ``neighbours``, ``interpolations`` → file, relative to the report.
        remarks: caveats for the reader.
    """

    path: str
    class_name: str
    sha256: str
    latent_shape: list[int]
    patch_size: int
    parameters: int
    metrics: dict[str, float]
    curve: list[CurvePoint]
    sample_seconds: float
    pictures: dict[str, str]
    remarks: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Returns the values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelResult:
        """Restores what ``to_dict`` returned."""
        return cls(**{**data, "curve": [CurvePoint(**point) for point in data["curve"]]})


@dataclass
class ProbeResults:
    """Everything in a probe's report.

    Attributes:
        settings: every option that the numbers depend on.
        models: in the order of the command line.
        reconstruction: model → metric → value, on the held-out images.
        remarks: caveats that apply to all models.
    """

    settings: dict[str, Any]
    models: dict[str, ModelResult]
    reconstruction: dict[str, dict[str, Value]]
    remarks: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Returns the values for JSON; numbers that are not finite become null."""
        data: dict[str, Any] = finite(asdict(self))
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ProbeResults:
        """Restores what ``to_dict`` returned; null becomes NaN."""
        return cls(
            settings=data["settings"],
            models={name: ModelResult.from_dict(entry) for name, entry in data["models"].items()},
            reconstruction={
                model: {name: Value.from_dict(entry) for name, entry in metrics.items()}
                for model, metrics in data["reconstruction"].items()
            },
            remarks=data["remarks"],
        )

    def generation_table(self) -> Results:
        """Returns the metrics of generated images, for the tables of a report."""
        metrics = {
            name: {metric: Value(value) for metric, value in model.metrics.items()}
            for name, model in self.models.items()
        }
        return Results(self.settings, metrics)

    def reconstruction_table(self) -> Results:
        """Returns the metrics of reconstructed images, for the tables of a report."""
        return Results(self.settings, self.reconstruction)


SHOWN = {
    "samples": (
        "Samples",
        "Not chosen: the first ones. Picture i of every model begins with noise of the same seed.",
    ),
    "neighbours": (
        "Nearest training images",
        "Above: the samples that come nearest to a training image. Below each: that image. If the two are "
        "alike, the denoiser has memorised images.",
    ),
    "interpolations": (
        "Interpolations",
        "Each row goes from the noise of one sample to that of another, along a great circle. Pictures "
        "should change gradually, and those in between should be as good as those at the ends.",
    ),
}
"""Kind of picture → its heading, and what to look for."""


_ABOUT = {
    "losses": "The loss is the squared error of the velocity on held-out latents, at the same times and "
    "noise for all models. Losses of different latent spaces cannot be compared: a space that stores much "
    "noise has a high loss and one that stores little a low one, whatever the pictures look like. The "
    "relative loss is divided by the loss of a denoiser that knows each channel's variance and nothing else. "
    "It says how much of the structure of the latents was learned, not how good pictures are.",
    "compare": "Generated, reconstructed and noise are distances to the same training images, of equally "
    "many pictures. Real says how far real images are from each other at that number. Compare them with each "
    "other, on these data only. What a small denoiser makes of little data in little time orders latent "
    "spaces at best, and does not forecast what a large one would make.",
}


def write_report(results: ProbeResults, folder: Path) -> None:
    """Writes the report into ``folder``, beside the images; the JSON last, to mark the probe as complete."""
    write_page(folder / "probe.md", render_report_markdown(results))
    write_page(folder / "probe.html", render_page(results, folder))
    write_json(folder / RESULTS, results.to_dict())


def render_page(results: ProbeResults, folder: Path) -> str:
    """Returns the page with the pictures embedded."""
    return render(
        "probe.html",
        **_values(results),
        generation=metric_rows(results.generation_table()),
        reconstruction=metric_rows(results.reconstruction_table()),
        pictures=_pictures(results, lambda file: data_uri(folder / file)),
        losses=loss_charts(results),
    )


def render_report_markdown(results: ProbeResults) -> str:
    """Returns the numbers, and where the pictures are."""
    table = results.reconstruction_table()
    return render(
        "probe.md",
        **_values(results),
        table=render_markdown(results.generation_table()),
        generation=metric_rows(results.generation_table()),
        reconstruction=render_markdown(table) if any(table.models.values()) else "",
        pictures=_pictures(results, str),
    )


def loss_charts(results: ProbeResults) -> list[PageChart]:
    """Returns two charts with one curve per model: the relative loss, and the plain loss."""
    curves = {name: model.curve for name, model in results.models.items() if model.curve}
    charts = []
    for title, note, loss in (
        ("Held-out flow loss, relative", "1: nothing learned", "relative_loss"),
        ("Held-out flow loss", "each in its own latent space", "validation_loss"),
    ):
        points = {name: [(p.step, getattr(p, loss)) for p in curve] for name, curve in curves.items()}
        if points:
            charts.append(PageChart(title, note, figures.svg(figures.curves(points, x_name="steps"), title)))
    return charts


def _values(results: ProbeResults) -> dict[str, Any]:
    """Returns the values that both files show."""
    settings = results.settings
    own = [f"{name}: {remark}" for name, model in results.models.items() for remark in model.remarks]
    return {
        "title": f"What can be generated after {settings['steps']} steps at {settings['image_size']} pixels",
        "results": results,
        "caveats": [*results.remarks, *own],
        "about": _ABOUT,
    }


def _pictures(results: ProbeResults, source: Callable[[str], str]) -> list[dict[str, Any]]:
    """Returns the kinds of pictures that there are, each with model → source."""
    parts = []
    for kind, (title, about) in SHOWN.items():
        found = {
            name: model.pictures[kind] for name, model in results.models.items() if kind in model.pictures
        }
        if found:
            images = {name: source(file) for name, file in found.items()}
            parts.append({"kind": kind, "title": title, "about": about, "images": images})
    return parts
