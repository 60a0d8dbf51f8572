"""Writes every export format, reads it back and compares, as a Markdown table.

Draws random weights for the f8 architectures of Stable Diffusion and FLUX and for a VQGAN. Prints the errors
that the exporter measures (largest difference over the largest value of the source), and the share of codes
that stay the same.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from measuring import benchmark_parser, print_head, print_row

from latentae import KLVAE, VQVAE, load_autoencoder
from latentae.build import build_autoencoder
from latentae.config import read_config, shipped_configs
from latentae.export import export_autoencoder

# (shipped config, shift and scale given to it, format, family)
_CASES = (
    ("kl_f8", (0.3, 0.9), "diffusers", None),
    ("kl_f8", (0.3, 0.9), "ldm", None),
    ("kl_f8", (0.3, 0.9), "comfyui", "sd1"),
    ("kl_f8", (0.3, 0.9), "comfyui", "sdxl"),
    ("kl_f8_16ch", (0.3, 0.9), "comfyui", "sd3"),
    ("kl_f8_16ch", (0.3, 0.9), "comfyui", "flux"),
    ("vqgan_f16", (0.3, 0.9), "diffusers", None),
    ("vqgan_f16", (0.3, 0.9), "ldm", None),
)
_DTYPES = ("fp32", "fp16")
_QUANTITIES = ("encode", "decode", "normalised latents")


def main() -> None:
    benchmark_parser(__doc__).parse_args()
    print_head("config", "format", "family", "dtype", *_QUANTITIES, "codes kept")
    models: dict[str, KLVAE | VQVAE] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, normalisation, format_, family in _CASES:
            if name not in models:
                models = {name: _model(name, *normalisation)}  # one at a time: they are large
            for dtype in _DTYPES:
                cells = _round_trip(models[name], Path(folder), format_, family, dtype)
                print_row(f"`{name}`", format_, family or "", dtype, *cells)


def _model(name: str, shift: float, scale: float) -> KLVAE | VQVAE:
    torch.manual_seed(0)
    model = build_autoencoder(read_config(shipped_configs()[name]).model, sample_size=256).eval()
    model.register_to_config(shift_factor=shift, scaling_factor=scale)
    if isinstance(model, VQVAE):
        latents = model.encode(_images()).latents
        codes = torch.randn_like(model.quantize.embedding.weight)
        model.quantize.embedding.weight.copy_(latents.mean() + latents.std() * codes)
    return model


def _round_trip(
    model: KLVAE | VQVAE, folder: Path, format_: str, family: str | None, dtype: str
) -> Iterator[str]:
    path = folder / ("model" if format_ == "diffusers" else "model.safetensors")
    report = export_autoencoder(model, path, format=format_, family=family, dtype=dtype, overwrite=True)
    for quantity in _QUANTITIES:
        yield f"{report.errors[quantity]:.1e}"
    if isinstance(model, VQVAE):
        reopened = load_autoencoder(path)
        same = reopened.encode_indices(_images()) == model.encode_indices(_images())
        yield f"{same.double().mean():.1%}"
    else:
        yield ""


@torch.no_grad()
def _images() -> torch.Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
