"""One batch of images to what a cache stores of it."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from latentae.latents.cache.options import DTYPES, PRECISIONS, CacheOptions
from latentae.models import VQVAE, LatentAutoencoder

FLIPPED = "_flipped"
"""What ends the names of tensors of mirrored images."""

_MOST_SHORT_CODES = 2**15


@torch.no_grad()
def encode_batch(model: LatentAutoencoder, images: Tensor, options: CacheOptions) -> dict[str, Tensor]:
    """What is stored of some images, on the model's device.

    Args:
        model: in eval mode.
        images: [B, C, H, W] in [−1, 1], on the model's device.
        options: what to store.

    Returns:
        ``mean`` [B, c, h, w], and ``std`` where the model has a posterior, unscaled, in the dtype asked for;
        ``codes`` [B, h, w] or [B, depth, h, w], int16 or int32; the same of the mirrored images with
        ``_flipped`` behind the name.
    """
    tensors = _encode(model, images, options)
    if options.flips:
        mirrored = _encode(model, images.flip(-1), options)
        tensors |= {f"{name}{FLIPPED}": tensor for name, tensor in mirrored.items()}
    return tensors


def check_codes(model: LatentAutoencoder, options: CacheOptions) -> None:
    """Raises ValueError where codes are asked of a model without."""
    if options.codes and not isinstance(model, VQVAE):
        raise ValueError(f"codes are of VQ models, and this is a {type(model).__name__}: leave codes out")


def check_values(tensors: dict[str, Tensor], dtype: str) -> None:
    """Raises ValueError where latents are not finite, and so of no use."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(
                f"the latents ({name}) hold values that are not finite in {dtype}: either they are too large "
                "for it, and dtype bfloat16 or float32 holds them, or the model's weights are damaged"
            )


def _encode(model: LatentAutoencoder, images: Tensor, options: CacheOptions) -> dict[str, Tensor]:
    autocast = PRECISIONS[options.precision]
    with nullcontext() if autocast is None else torch.autocast(images.device.type, autocast):
        output = model.encode(images.to(model.dtype))
    posterior: Any = output.latent_dist
    dtype = DTYPES[options.dtype]
    tensors: dict[str, Tensor] = {}
    if options.latents:
        tensors["mean"] = posterior.mode().to(dtype)
        if hasattr(posterior, "std"):
            tensors["std"] = posterior.std.to(dtype)
    if options.codes:
        assert isinstance(model, VQVAE)
        short = model.num_codes <= _MOST_SHORT_CODES
        indices = model.quantize.indices(output.latents.to(model.dtype))
        tensors["codes"] = indices.to(torch.int16 if short else torch.int32)
    return tensors
