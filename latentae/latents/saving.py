"""Where a calibrated model goes: to a new folder, or over the model it was made of."""

from __future__ import annotations

import re
from pathlib import Path

from latentae.export import export_autoencoder
from latentae.models import KLVAE, VQVAE
from latentae.models.checkpoints.folders import find_model_folder

# What an export puts in the place of the old model: its config and weights, in one file or in shards.
_REPLACED = re.compile(
    r"config\.json|diffusion_pytorch_model(-\d{5}-of-\d{5})?\.(safetensors|bin)(\.index\.json)?"
)
_KEPT = ("README.md", ".gitattributes")


def choose_place(model: str, out: Path | None, in_place: bool) -> Path | None:
    """The folder to write to, None for none; checked before anything is measured.

    Args:
        model: what the model was opened by: for ``in_place`` its folder, a run's, or a pipeline's.
        out: a folder that is not there yet, or empty.

    Raises:
        ValueError: the model must not go there.
    """
    if in_place:
        if not Path(model).is_dir():
            raise ValueError(f"--in-place needs the folder of a model, and {model} is none; use --out FOLDER")
        folder = find_model_folder(Path(model))
        # A half-precision variant, say, would no longer be of the same model.
        others = [
            file.name
            for file in folder.iterdir()
            if not _REPLACED.fullmatch(file.name) and file.name not in _KEPT
        ]
        if others:
            raise ValueError(
                f"--in-place would lose {', '.join(sorted(others))} in {folder}: move away what is not the "
                "model, or use --out FOLDER"
            )
        return folder
    if out is not None and (out.is_file() or (out.is_dir() and any(out.iterdir()))):
        raise ValueError(f"--out is {out}, which is there already; choose a new folder")
    return out


def check_writable(model: KLVAE | VQVAE) -> None:
    """Raises ValueError for a model that ``write_model`` cannot write, since no stock class can hold it."""
    if isinstance(model, VQVAE) and model.stock_objection is not None:
        raise ValueError(
            f"{model.stock_objection}, so the calibrated model cannot be written as one. Leave out --out and "
            "--in-place to measure it only; latentae.latents.calibration.calibrate changes a model in "
            "memory, and save_pretrained keeps it"
        )


def write_model(model: KLVAE | VQVAE, place: Path) -> float:
    """Exports the model as diffusers' stock class; a model at ``place`` is replaced, its card kept.

    Returns:
        By how much the reopened export differs from the model at most, relative to the largest value.

    Raises:
        ValueError: the stock class cannot hold the model, or what was written is not the model. What was at
            ``place`` is then still there.
    """
    kept = {name: (place / name).read_bytes() for name in _KEPT if (place / name).is_file()}
    report = export_autoencoder(model, place, format="diffusers", overwrite=True)
    for name, content in kept.items():
        (place / name).write_bytes(content)
    return report.max_error
