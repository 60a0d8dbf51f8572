"""The files of a probe's report: ``probe.html``, ``probe.md`` and ``results.json``."""

from __future__ import annotations

from html import escape
from pathlib import Path

from latentae.diffusion.charts import loss_charts
from latentae.diffusion.folder import RESULTS, write_json
from latentae.diffusion.results import ProbeResults
from latentae.evaluation.report import tables
from latentae.evaluation.report.browser import data_uri
from latentae.evaluation.report.document import asset, document, section
from latentae.evaluation.report.table import info, present_metrics, render_markdown
from latentae.latents.cache.files import write_aside

SHOWN = {
    "samples": (
        "Samples",
        "Not chosen: the first ones. Picture i of every model begins with noise of the same seed.",
    ),
    "neighbours": (
        "Nearest training images",
        "Above, the samples that come nearest to a training image; below each, that image. If the two are "
        "alike, the denoiser has learned images by heart.",
    ),
    "interpolations": (
        "Interpolations",
        "Each row: between the noise of two samples, along a great circle. Pictures should change "
        "gradually, and those between should be as good as those at the ends.",
    ),
}
"""Kind of picture → its heading, and what to look for."""

_LOSSES = (
    "The loss is the squared error of the velocity on held-out latents, at the same times and noise for all. "
    "Losses of different latent spaces cannot be compared: one that stores much noise has a high loss, and "
    "one that stores little a low one, whatever the pictures look like. The relative loss is divided by what "
    "a denoiser reaches that knows each channel's variance and nothing else: it says how much there is to "
    "learn about how latents belong together, and how much of it was learned, not how good pictures are."
)
_COMPARE = (
    "Generated, reconstructed and noise are distances to the same training images and of equally many "
    "pictures, and real says how far real images are from each other at that number: compare them with each "
    "other, on these data only. What a small denoiser makes of little data in little time is an order of "
    "latent spaces at best, and no forecast of what a large one would make."
)


def write_report(results: ProbeResults, folder: Path) -> None:
    """Writes the report into ``folder``, where the pictures lie; the JSON last: it marks the end."""
    for name, text in (
        ("probe.md", render_report_markdown(results)),
        ("probe.html", render_page(results, folder)),
    ):
        write_aside(folder / name, text.encode(errors="backslashreplace"))
    write_json(folder / RESULTS, results.to_dict())


def render_page(results: ProbeResults, folder: Path) -> str:
    """The page, with the pictures embedded."""
    curves = loss_charts({name: model.curve for name, model in results.models.items()})
    sections = [
        section("Generation", tables.metrics(results.generation_table()) + _quiet(_COMPARE)),
        section("To be read with care", _list(_remarks(results))),
        *(section(title, _pictures(results, kind, about, folder)) for kind, (title, about) in SHOWN.items()),
        section("Loss", f'<div class="charts">{"".join(curves)}</div>{_quiet(_LOSSES)}'),
        section("Reconstruction of held-out images", _reconstruction(results)),
        section("Models", _models(results)),
        section("Settings", tables.definitions(results.settings)),
    ]
    script = (
        '<script type="application/json" id="pictures-data">{"pictures": []}</script>\n'
        f"<script>{asset('report.js')}</script>"
    )
    button = '<button id="theme" type="button">light / dark</button>'
    return document(_title(results), " · ".join(results.models), sections, controls=button, end=script)


def render_report_markdown(results: ProbeResults) -> str:
    """The numbers and where the pictures are."""
    generation = results.generation_table()
    meanings = [f"- **{info(name).label}**: {info(name).meaning}" for name in present_metrics(generation)]
    parts = [f"# {_title(results)}", render_markdown(generation), _COMPARE, "\n".join(meanings)]
    if any(results.reconstruction.values()):
        parts += ["## Reconstruction of held-out images", render_markdown(results.reconstruction_table())]
    for kind, (title, about) in SHOWN.items():
        links = [
            f"![{name}]({model.pictures[kind]})"
            for name, model in results.models.items()
            if kind in model.pictures
        ]
        parts += [f"## {title}", about, *links] if links else []
    remarks = _remarks(results)
    parts += ["## To be read with care", "\n".join(f"- {remark}" for remark in remarks)] if remarks else []
    parts += ["## Loss", _LOSSES, _loss_table(results), "## Models", _model_table(results)]
    settings = "\n".join(f"- {name}: {value}" for name, value in results.settings.items())
    return "\n\n".join([*parts, "## Settings", settings]) + "\n"


def _title(results: ProbeResults) -> str:
    settings = results.settings
    return f"What can be generated after {settings['steps']} steps at {settings['image_size']} pixels"


def _remarks(results: ProbeResults) -> list[str]:
    own = [f"{name}: {remark}" for name, model in results.models.items() for remark in model.remarks]
    return [*results.remarks, *own]


def _pictures(results: ProbeResults, kind: str, about: str, folder: Path) -> str:
    figures = "".join(
        f"<figure><figcaption>{escape(name)}</figcaption>"
        f'<img alt="{escape(kind)} of {escape(name)}" src="{data_uri(folder / model.pictures[kind])}" '
        'style="width:100%;display:block"></figure>'
        for name, model in results.models.items()
        if kind in model.pictures
    )
    return f'{_quiet(about)}<div class="charts">{figures}</div>' if figures else ""


def _reconstruction(results: ProbeResults) -> str:
    if not any(results.reconstruction.values()):
        return ""
    return tables.metrics(results.reconstruction_table())


def _models(results: ProbeResults) -> str:
    return "".join(
        f"<h3>{escape(name)}</h3>"
        + tables.definitions(
            {
                "class": model.class_name,
                "path": model.path,
                "SHA-256 of the weights": model.sha256,
                "latents": " x ".join(map(str, model.latent_shape)),
                "patch of a token": f"{model.patch_size} x {model.patch_size}",
                "parameters of the denoiser": f"{model.parameters:,}",
                "seconds of training": f"{model.curve[-1].seconds:.0f}",
                "seconds a picture": f"{model.sample_seconds:.3f}",
            }
        )
        for name, model in results.models.items()
    )


def _model_table(results: ProbeResults) -> str:
    head = "| model | class | latents | patch | parameters | training, s | weights |\n| --- |" + " --- |" * 6
    rows = [
        f"| {name} | {model.class_name} | {' x '.join(map(str, model.latent_shape))} | {model.patch_size} | "
        f"{model.parameters:,} | {model.curve[-1].seconds:.0f} | `{model.sha256[:16]}` from {model.path} |"
        for name, model in results.models.items()
    ]
    return "\n".join([head, *rows])


def _loss_table(results: ProbeResults) -> str:
    head = "| model | step | training | held out | relative |\n| --- | ---: | ---: | ---: | ---: |"
    rows = [
        f"| {name} | {point.step} | {point.training_loss:.4f} | {point.validation_loss:.4f} | "
        f"{point.relative_loss:.4f} |"
        for name, model in results.models.items()
        for point in model.curve
    ]
    return "\n".join([head, *rows])


def _list(items: list[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>" if items else ""


def _quiet(text: str) -> str:
    return f'<p class="quiet">{escape(text)}</p>'
