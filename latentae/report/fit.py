"""Tables of how well models fit a denoiser of their teacher: for a terminal, ``results.md`` and the page."""

from __future__ import annotations

from latentae.report.results import Results, TeacherFit, Value, info, number
from latentae.report.tables import Table, aligned

_METRICS = ("psnr", "psnr_loss", "ssim", "lpips_alex")
_CHANNELS = {
    "mean_shift": "mean shift",
    "std_ratio": "ratio of deviations",
    "correlation": "correlation",
    "relative_mse": "relative MSE",
}


def decoding_table(results: Results) -> Table | None:
    """Returns the decoders on each other's latents, below each on its own; None where there is no teacher."""
    if results.teacher is None:
        return None
    teacher = results.teacher
    rows = [_row(f"{teacher} decodes its own latents", results.models[teacher])]
    for model, fit in results.fit.items():
        rows += [
            _row(f"{model} decodes its own latents", results.models[model]),
            _row(f"{model} decodes latents of {teacher}", fit.new_decoder_on_old_latents),
            _row(f"{teacher} decodes latents of {model}", fit.old_decoder_on_new_latents),
        ]
    head = [f"{info(name).label}{f', {info(name).unit}' if info(name).unit else ''}" for name in _METRICS]
    return Table("", head, rows)


def channels_table(results: Results) -> Table | None:
    """Returns how far each channel of the latents moved; None where there is no teacher."""
    rows = [
        [f"{model}, {label}", *(_shown(value) for value in fit.channels[name])]
        for model, fit in results.fit.items()
        for name, label in _CHANNELS.items()
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


def _row(label: str, values: dict[str, Value]) -> list[str]:
    return [label, *(number(values[name].value, name) if name in values else "-" for name in _METRICS)]


def _shown(value: float) -> str:
    return "-" if value != value else f"{value:.3f}"  # NaN of a constant channel
