"""Moves what a format cannot record into a model's weights: normalisation, and other quantizers' codes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latentae.models import VQVAE, Autoencoder, Flux2VAE
from latentae.models.folding import fold_normalisation

FLUX2 = "a FLUX.2 VAE normalises 2x2 patches of its latents by its own statistics, not by one scale and shift"
MEASURE = "measure it with scripts/latent_stats.py MODEL --data IMAGES --out FOLDER"


@dataclass(frozen=True)
class Normalisation:
    """Holds what ``to_latents`` applies: (latents − shift) · scale, per channel.

    Attributes:
        shift, scale: [c] float64.
    """

    shift: Tensor
    scale: Tensor


def read_normalisation(model: Autoencoder) -> Normalisation | None:
    """Returns the normalisation in a model's config; None where its scale is not known."""
    config = model.config
    if isinstance(model, Flux2VAE):
        raise ValueError(FLUX2)
    if config.scaling_factor is None:
        return None
    scale = torch.full([model.latents_channels], config.scaling_factor, dtype=torch.float64)
    own = config.get("latents_mean"), config.get("latents_std")
    if own[0] is None or own[1] is None:
        return Normalisation(torch.full_like(scale, config.shift_factor or 0.0), scale)
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in own)
    return Normalisation(mean, scale / std)


def fold_to(model: Autoencoder, shift: float, scale: float) -> str | None:
    """Changes a model's weights and config in place so that its normalisation is (latents − shift) · scale.

    Pixels and normalised latents stay the same. A KL-VAE without convolutions around its latents gets them,
    unless nothing has to change.

    Returns:
        A remark on what was changed; None where nothing was.

    Raises:
        ValueError: the model's scale is not known, or differs per channel in a VQ model.
    """
    own = read_normalisation(model)
    if own is None:
        raise ValueError(f"the scale of this model's latents is not known, so it cannot be folded: {MEASURE}")
    # (z − s) · k = (z' − S) · K for z' = (z − s) · k / K + S
    factor = own.scale / scale
    origin = own.shift - shift / factor
    model.change_config(scaling_factor=scale, shift_factor=shift, latents_mean=None, latents_std=None)
    unchanged = bool((factor == 1).all() and (origin == 0).all())
    missing = [conv for conv in (model.quant_conv, model.post_quant_conv) if conv is None]
    if unchanged and len(missing) != 1:  # some readers cannot hold one convolution alone
        return None
    fold_normalisation(model, origin, factor, add_convs=True)
    convs = "1x1 convolutions, which were added around" if missing else "the convolutions around"
    return (
        f"the normalisation was folded into {convs} the latents, so that a denoiser sees "
        f"(latents - {shift:g}) * {scale:g}"
    )


def write_out_codebook(model: Autoencoder) -> list[str]:
    """Puts a plain codebook into a VQ model that has one, in place; every latent keeps its code.

    Returns:
        A remark where that changed anything.
    """
    if not isinstance(model, VQVAE):
        return []
    kind = (model.config.quantizer or {}).get("type")
    if not model.write_out_codebook():
        return []
    return [f"the codes of quantizer {kind!r} were written out as a plain codebook, with the same indices"]
