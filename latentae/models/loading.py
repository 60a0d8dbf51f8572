"""Opening an autoencoder from a folder, whoever wrote it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from latentae.models.kl import KLVAE
from latentae.models.vq import VQGAN, VQVAE

# A plain VQModel does not say how it was trained; the two classes differ in name only.
_CLASSES: dict[str, type[KLVAE] | type[VQVAE]] = {
    "KLVAE": KLVAE,
    "AutoencoderKL": KLVAE,
    "VQVAE": VQVAE,
    "VQGAN": VQGAN,
    "VQModel": VQGAN,
}


def load_autoencoder(path: str | Path, **arguments: Any) -> KLVAE | VQVAE:
    """The model in a folder with ``config.json`` and safetensors, in eval mode.

    Args:
        path: a folder written by latentae or by diffusers.
        arguments: passed to ``from_pretrained``, such as ``torch_dtype`` or ``variant``.

    Raises:
        ValueError: no model there, or one of a class that is not an autoencoder of ours.
    """
    config_file = Path(path) / "config.json"
    if not config_file.is_file():
        raise ValueError(
            f"no model in {path}: no {config_file.name} there. A run's model is in <output_dir>/model"
        )
    name = json.loads(config_file.read_text()).get("_class_name")
    if name not in _CLASSES:
        raise ValueError(f"{config_file} describes a {name}, but must be one of {', '.join(_CLASSES)}")
    return _CLASSES[name].from_pretrained(str(path), **arguments).eval()
