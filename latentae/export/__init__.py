"""Export: writes models in the formats that other programs read.

Heavy libraries load on first use, so that a command line can report a mistake at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latentae.export.export import ExportReport, export_autoencoder
    from latentae.export.formats import export_diffusers

__all__ = ["DTYPES", "FORMATS", "ExportReport", "export_autoencoder", "export_diffusers"]

FORMATS = {
    "diffusers": "a folder of the stock class, which loads without latentae: AutoencoderKL, VQModel, "
    "AutoencoderKLFlux2 (also with another decoder width) or AutoencoderTiny",
    "ldm": "one file in latent diffusion's layout, with scale and shift in its metadata; a FLUX.2 VAE in the "
    "layout of FLUX.2's own file, which ComfyUI reads too",
    "comfyui": "one file for ComfyUI's models/vae: a KL-VAE of Stable Diffusion's architecture, also with a "
    "narrower decoder, whose weights are changed so that the family's scale and shift are right",
    "taesd": "a folder with the two files of a TinyAutoencoder, as TAESD publishes them; with a family, "
    "under the names that ComfyUI looks for in models/vae_approx",
    "latentae": "a folder of latentae's own class, for load_autoencoder and for pipelines where latentae is "
    "installed: every model, with any decoder and quantizer",
}
"""Names of the formats, and what each is and who reads it."""
DTYPES = ("fp32", "fp16", "bf16")

_HOMES = {"ExportReport": "export", "export_autoencoder": "export", "export_diffusers": "formats"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
