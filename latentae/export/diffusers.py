"""A folder that diffusers loads, with or without latentae beside it."""

from __future__ import annotations

from pathlib import Path

from latentae.models import KLVAE, VQVAE


def export_diffusers(autoencoder: KLVAE | VQVAE, path: Path) -> None:
    """Writes ``config.json`` and ``diffusion_pytorch_model.safetensors`` of the stock class into ``path``."""
    autoencoder.to_diffusers().save_pretrained(str(path))
