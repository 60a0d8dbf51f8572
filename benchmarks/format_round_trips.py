"""Writes every export format, reads it back and compares, as a Markdown table.

Draws random weights for the f8 architectures of Stable Diffusion and FLUX, for a VQGAN, for decoders that are
not their encoder's mirror, and for TAESD. Prints the errors that the exporter measures (largest difference
over the largest value of the source), and the share of codes that stay the same.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from measuring import benchmark_parser, print_head, print_row

from latentae import KLVAE, VQVAE, TinyAutoencoder, load_autoencoder
from latentae.build import build_autoencoder
from latentae.config import read_config, shipped_configs
from latentae.export import export_autoencoder

# What has no shipped config: a config that it differs from, and in what.
_CHANGED = {
    "kl_f8, decoder half as wide": ("kl_f8", {"decoder_block_out_channels": (64, 128, 256, 256)}),
    "kl_f8, images twice as large": ("kl_f8", {"upscale": 2}),
}
_TAESD = "TAESD"
# (model, shift and scale given to it, format, family)
_CASES = (
    ("kl_f8", (0.3, 0.9), "diffusers", None),
    ("kl_f8", (0.3, 0.9), "ldm", None),
    ("kl_f8", (0.3, 0.9), "comfyui", "sd1"),
    ("kl_f8", (0.3, 0.9), "comfyui", "sdxl"),
    ("kl_f8_16ch", (0.3, 0.9), "comfyui", "sd3"),
    ("kl_f8_16ch", (0.3, 0.9), "comfyui", "flux"),
    ("vqgan_f16", (0.3, 0.9), "diffusers", None),
    ("vqgan_f16", (0.3, 0.9), "ldm", None),
    ("kl_f8, decoder half as wide", (0.3, 0.9), "comfyui", "sd1"),
    ("kl_f8, decoder half as wide", (0.3, 0.9), "latentae", None),
    ("kl_f8, images twice as large", (0.3, 0.9), "latentae", None),
    (_TAESD, (0.0, 1.0), "diffusers", None),
    (_TAESD, (0.0, 1.0), "taesd", "sd1"),
)
_DTYPES = ("fp32", "fp16")
_QUANTITIES = ("encode", "decode", "normalised latents")


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--only", default="", metavar="TEXT", help="models whose names contain TEXT")
    only = parser.parse_args().only
    print_head("config", "format", "family", "dtype", *_QUANTITIES, "codes kept")
    models: dict[str, KLVAE | VQVAE | TinyAutoencoder] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, normalisation, format_, family in _CASES:
            if only not in name:
                continue
            if name not in models:
                models = {name: _model(name, *normalisation)}  # one at a time: they are large
            for dtype in _DTYPES:
                cells = _round_trip(models[name], Path(folder), format_, family, dtype)
                print_row(f"`{name}`", format_, family or "", dtype, *cells)


def _model(name: str, shift: float, scale: float) -> KLVAE | VQVAE | TinyAutoencoder:
    torch.manual_seed(0)
    if name == _TAESD:
        return TinyAutoencoder().eval()
    config, changes = _CHANGED.get(name, (name, {}))
    model = build_autoencoder(read_config(shipped_configs()[config]).model, sample_size=256).eval()
    if changes:
        model = KLVAE.from_config({**model.config, **changes}).eval()
    model.register_to_config(shift_factor=shift, scaling_factor=scale)
    if isinstance(model, VQVAE):
        latents = model.encode(_images()).latents
        codes = torch.randn_like(model.quantize.embedding.weight)
        model.quantize.embedding.weight.copy_(latents.mean() + latents.std() * codes)
    return model


def _round_trip(
    model: KLVAE | VQVAE | TinyAutoencoder, folder: Path, format_: str, family: str | None, dtype: str
) -> Iterator[str]:
    path = folder / ("model.safetensors" if format_ in ("ldm", "comfyui") else f"model_{format_}")
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
