"""Compares an export with its source on the same random images."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentae.models import VQVAE, Autoencoder

# For weights that are rounded to the dtype, while both models compute in float32.
TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 1e-1}


@torch.no_grad()
def compare(source: Autoencoder, prepared: Autoencoder, reopened: Autoencoder) -> dict[str, float]:
    """Returns the largest differences between an export and its source, divided by the largest magnitude.

    Args:
        source: the model to be exported.
        prepared: the same model, with its normalisation folded for the format.
        reopened: the model that was read back. All three are in eval mode, on the CPU and in float32.

    Returns:
        ``encode``: a sample of the raw latents, compared with ``prepared``. ``decode``: the pixels of the
        source's latents or codes. ``normalised latents``: a sample of what a denoiser sees, where the
        source's scale is known.

    Raises:
        ValueError: values that are not finite.
    """
    factor = source.downsampling_factor
    images = torch.rand(2, source.config.in_channels, 3 * factor, 4 * factor, generator=_generator()) * 2 - 1
    errors = {"encode": _difference(_raw_latents(reopened, images), _raw_latents(prepared, images))}
    if isinstance(source, VQVAE) and isinstance(reopened, VQVAE):
        # Decode the same codes: near a border between two codes, rounding may choose the other one.
        indices = source.encode_indices(images)
        errors["decode"] = _difference(reopened.decode_indices(indices), source.decode_indices(indices))
    else:
        pixels = source.decode(source.encode(images).latents).sample
        errors["decode"] = _difference(reopened.decode(prepared.encode(images).latents).sample, pixels)
    if source.has_known_scale:
        latents = source.to_latents(images, _generator())
        errors["normalised latents"] = _difference(reopened.to_latents(images, _generator()), latents)
    return errors


@torch.no_grad()
def find_overflow(model: Autoencoder, dtype: torch.dtype) -> str | None:
    """Runs a model in ``dtype``; returns the first step that gives values which are not finite.

    Args:
        model: in eval mode, on the CPU and in float32; it stays as it is.

    Returns:
        ``"encode"``, ``"decode"``, or None where both are finite.
    """
    twin = copy.deepcopy(model)
    nn.Module.to(twin, dtype)  # ModelMixin's own warns of modules to keep in float32; there are none
    images = _pictures(model)
    if not bool(_latents(twin, images.to(dtype)).isfinite().all()):
        return "encode"
    # Decode float32's latents, so that an error of encoding is not taken for one of decoding.
    pixels = twin.decode(model.encode(images).latents.to(dtype)).sample
    return None if bool(pixels.isfinite().all()) else "decode"


def _pictures(model: Autoencoder) -> Tensor:
    """Returns noise, two smooth pictures, black and white [5, C, 3 f, 4 f]: each drives other activations."""
    factor, channels = model.downsampling_factor, model.config.in_channels
    size = (3 * factor, 4 * factor)
    noise = torch.rand(1, channels, *size, generator=_generator()) * 2 - 1
    coarse = torch.rand(2, channels, 3, 4, generator=_generator()) * 2 - 1
    smooth = F.interpolate(coarse, size=size, mode="bilinear")
    flat = torch.ones(1, channels, *size)
    return torch.cat([noise, smooth, -flat, flat])


def _latents(model: Autoencoder, images: Tensor) -> Tensor:
    """Returns mean and standard deviation of the posterior, or the latents before quantization."""
    posterior = model.encode(images).latent_dist
    return torch.cat([posterior.mode(), posterior.std]) if hasattr(posterior, "std") else posterior.mode()


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _raw_latents(model: Autoencoder, images: Tensor) -> Tensor:
    return model.encode(images).latent_dist.sample(_generator())


def _difference(result: Tensor, expected: Tensor) -> float:
    """Returns the largest difference divided by the largest magnitude."""
    if result.shape != expected.shape:
        raise ValueError(
            f"the export gives {list(result.shape)} where its source gives {list(expected.shape)}"
        )
    if not bool(expected.isfinite().all()):
        raise ValueError("the model gives values that are not finite: its weights are damaged")
    if not bool(result.isfinite().all()):
        raise ValueError(
            "the export gives values that are not finite: its weights overflow, choose bf16 or fp32"
        )
    largest = expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)
    return ((result - expected).abs().max() / largest).item()
