"""The model card that is uploaded to the hub with a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

_MARK = "<!-- written by latentae: edit this line away, and the card is yours -->"
# Part of the card that diffusers writes if there is none yet.
_PLACEHOLDER = "This model card has been automatically generated."
_METRICS = {
    "psnr": ("PSNR", "{:.2f} dB"),
    "ssim": ("SSIM", "{:.4f}"),
    "lpips": ("LPIPS (AlexNet)", "{:.4f}"),
    "codebook_usage": ("codes in use", "{:.1%}"),
    "codebook_perplexity": ("codebook perplexity", "{:.0f}"),
}


def write_card(model: Any, folder: Path, name: str) -> None:
    """Replaces the README.md that diffusers wrote in ``folder``, or an older card of ours, by a model card.

    A card that somebody has edited stays, and without a README.md nothing is written.
    """
    path = folder / "README.md"
    old = path.read_text(encoding="utf-8") if path.is_file() else ""
    if _MARK in old or _PLACEHOLDER in old:
        path.write_text(model_card(model, name), encoding="utf-8")


def model_card(model: Any, name: str) -> str:
    """Returns Markdown with the hub's YAML header: the model, how to load it, its training and its metrics.

    Training and metrics come from a run's ``config.yaml`` and ``summary.json``, if these are in the folder
    that the model was loaded from or in its parent.

    Args:
        model: a KLVAE, VQVAE, VQGAN or TinyAutoencoder.
        name: what the reader will pass to ``load_autoencoder``: a hub id or a folder.
    """
    header = yaml.safe_dump(
        {"library_name": "diffusers", "tags": ["latentae", "autoencoder", type(model).__name__.lower()]},
        sort_keys=False,
    )
    sections = [
        f"---\n{header}---",
        _MARK,
        f"# {name.rsplit('/', 1)[-1]}",
        _description(model),
        "## How to load it",
        _usage(model, name),
        "## Training",
        _training(_beside(model, "config.yaml")),
        "## Reconstruction",
        _quality(_beside(model, "summary.json")),
    ]
    return "\n\n".join(sections) + "\n"


def _description(model: Any) -> str:
    config = model.config
    parameters = sum(parameter.numel() for parameter in model.parameters())
    factor = model.downsampling_factor
    quantize = getattr(model, "quantize", None)
    rows = {
        "class": f"`latentae.{type(model).__name__}`, {parameters / 1e6:.2f} M parameters",
        "images": f"{config.in_channels} channels, values in [-1, 1], any size from {factor}x{factor}",
        "latents": f"{config.latent_channels} channels, one position per {factor}x{factor} pixels",
    }
    if model.upscale > 1:
        rows["reconstructions"] = f"{model.upscale} times as large as the images, along each side"
    if quantize is not None:
        rows["codes"] = f"{config.num_vq_embeddings}, each of {model.quant_conv.out_channels} values"
        if quantize.depth is not None:
            rows["codes"] = f"{quantize.depth} per position, from tables of {config.num_vq_embeddings}"
    if hasattr(model, "bn"):
        rows["scaling"] = "2x2 patches, each channel by `bn.running_mean` and `bn.running_var`"
    else:
        rows["scaling"] = _scaling(config)
    return _table(rows)


def _scaling(config: Any) -> str:
    if config.scaling_factor is None:
        return "not measured"
    if config.get("latents_mean") is not None and config.get("latents_std") is not None:
        return f"(latents - `latents_mean`) * {config.scaling_factor:.6g} / `latents_std`"
    return f"(latents - {config.shift_factor or 0:.6g}) * {config.scaling_factor:.6g}"


def _usage(model: Any, name: str) -> str:
    stock = model._stock_class.__name__
    as_stock = (
        f"`vae.to_diffusers()` is a stock `{stock}` with the same weights."
        if model.fits_stock_class
        else "No diffusers class can hold its weights."
    )
    return f"""```python
import torch
from latentae import load_autoencoder

vae = load_autoencoder({name!r})
images = torch.rand(1, {model.config.in_channels}, 256, 256) * 2 - 1  # values in [-1, 1]
latents = vae.to_latents(images)  # scaled for a denoiser
images = vae.from_latents(latents)
```

It serves as `vae=` or `vqvae=` of a diffusers pipeline. {as_stock}"""


def _training(config: dict[str, Any] | None) -> str:
    if config is None:
        return "Not recorded beside the model."
    data = config.get("data") or {}
    effective = config.get("batch_size", 1) * config.get("gradient_accumulation_steps", 1)
    rows = {
        "images": _data_name(str(data.get("name"))),
        "split": data.get("split"),
        "crop": data.get("image_size"),
        "steps": config.get("max_steps"),
        "batch per process": effective,
        "precision": config.get("mixed_precision"),
        "seed": config.get("seed"),
    }
    return _table({key: str(value) for key, value in rows.items() if value is not None})


def _data_name(name: str) -> str:
    """Returns a data set's id, or the last part of a path; the rest of a path is private."""
    local = name.startswith(("/", "~", ".")) or Path(name).exists()
    return f"`{Path(name).name}`, a local file or folder" if local else f"`{name}`"


def _quality(summary: dict[str, Any] | None) -> str:
    if summary is None:
        return "Not recorded beside the model."
    rows = {
        label: form.format(summary[key])
        for key, (label, form) in _METRICS.items()
        if summary.get(key) is not None
    }
    return f"On {summary['images']} validation images after {summary['step']} steps:\n\n{_table(rows)}"


def _table(rows: dict[str, str]) -> str:
    return "\n".join(["| | |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in rows.items())])


def _beside(model: Any, file: str) -> dict[str, Any] | None:
    """Reads a run's file in the folder that the model was loaded from, or in its parent."""
    source = model.config.get("_name_or_path")
    if not source or not Path(source).is_dir():
        return None
    for folder in (Path(source), Path(source).resolve().parent):
        path = folder / file
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    return None
