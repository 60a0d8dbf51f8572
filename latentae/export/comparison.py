"""An export held against its source: the same random images through both."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentae.models import KLVAE, VQVAE

# Of weights rounded to the dtype, while both models compute in float32.
TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 1e-1}


@torch.no_grad()
def compare(source: KLVAE | VQVAE, prepared: KLVAE | VQVAE, reopened: KLVAE | VQVAE) -> dict[str, float]:
    """The largest differences between an export and its source, each divided by the largest magnitude.

    Args:
        source: the model that is being exported.
        prepared: the same, with its normalisation folded as the format wants it.
        reopened: what was read back. All three are in eval mode, on the CPU and in float32.

    Returns:
        ``encode``, a sample of the raw latents, against that of ``prepared``; ``decode``, the pixels of the
        source's latents or codes; ``normalised latents``, a sample of what a denoiser sees, where the
        source's scale is known.

    Raises:
        ValueError: values that are not finite.
    """
    factor = source.downsampling_factor
    images = torch.rand(2, source.config.in_channels, 3 * factor, 4 * factor, generator=_generator()) * 2 - 1
    errors = {"encode": _difference(_raw_latents(reopened, images), _raw_latents(prepared, images))}
    if isinstance(source, VQVAE) and isinstance(reopened, VQVAE):
        # Of the same codes: near a border between two of them, rounding may choose the other one.
        indices = source.encode_indices(images)
        errors["decode"] = _difference(reopened.decode_indices(indices), source.decode_indices(indices))
    else:
        pixels = source.decode(source.encode(images).latents).sample
        errors["decode"] = _difference(reopened.decode(prepared.encode(images).latents).sample, pixels)
    if source.config.scaling_factor is not None:
        latents = source.to_latents(images, _generator())
        errors["normalised latents"] = _difference(reopened.to_latents(images, _generator()), latents)
    return errors


@torch.no_grad()
def find_overflow(model: KLVAE | VQVAE, dtype: torch.dtype) -> str | None:
    """The first step of a model, run in ``dtype``, that gives values which are not finite.

    Args:
        model: in eval mode, on the CPU and in float32; stays as it is.

    Returns:
        ``"encode"``, ``"decode"``, or None where both are finite.
    """
    twin = copy.deepcopy(model)
    nn.Module.to(twin, dtype)  # ModelMixin's own warns of modules to keep in float32, of which there are none
    images = _pictures(model)
    if not bool(_latents(twin, images.to(dtype)).isfinite().all()):
        return "encode"
    # Of the latents in float32, so that no error of encoding is taken for one of decoding.
    pixels = twin.decode(model.encode(images).latents.to(dtype)).sample
    return None if bool(pixels.isfinite().all()) else "decode"


def _pictures(model: KLVAE | VQVAE) -> Tensor:
    """Noise, two smooth pictures, black and white: [5, C, 3 f, 4 f]. Each can drive other activations."""
    factor, channels = model.downsampling_factor, model.config.in_channels
    size = (3 * factor, 4 * factor)
    noise = torch.rand(1, channels, *size, generator=_generator()) * 2 - 1
    coarse = torch.rand(2, channels, 3, 4, generator=_generator()) * 2 - 1
    smooth = F.interpolate(coarse, size=size, mode="bilinear")
    flat = torch.ones(1, channels, *size)
    return torch.cat([noise, smooth, -flat, flat])


def _latents(model: KLVAE | VQVAE, images: Tensor) -> Tensor:
    """Mean and standard deviation of the posterior, or the latents before quantization."""
    posterior = model.encode(images).latent_dist
    return torch.cat([posterior.mode(), posterior.std]) if hasattr(posterior, "std") else posterior.mode()


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _raw_latents(model: KLVAE | VQVAE, images: Tensor) -> Tensor:
    return model.encode(images).latent_dist.sample(_generator())


def _difference(result: Tensor, expected: Tensor) -> float:
    """Largest difference over largest magnitude."""
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
