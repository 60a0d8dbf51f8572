"""Tiny autoencoders, ours and diffusers' own, built alike."""

from typing import Any

import torch
from diffusers import AutoencoderKL, VQModel

from latentae import KLVAE, VQGAN, VQVAE

AUTOENCODERS: dict[str, type[Any]] = {
    cls.__name__: cls for cls in (KLVAE, VQVAE, VQGAN, AutoencoderKL, VQModel)
}
OURS = ("KLVAE", "VQVAE", "VQGAN")
WIDTH = 8
NUM_CODES = 32


def has_codes(name: str) -> bool:
    """Whether the class called ``name`` is a VQ model."""
    return not issubclass(AUTOENCODERS[name], AutoencoderKL)


def tiny(name: str, latent_channels: int = 4, **config: Any) -> Any:
    """A model of two levels with random weights; a KL-VAE's posterior is as good as certain of its mean."""
    torch.manual_seed(0)
    if has_codes(name):
        config = {"num_vq_embeddings": NUM_CODES, "vq_embed_dim": latent_channels} | config
    model = AUTOENCODERS[name](
        block_out_channels=(WIDTH, WIDTH),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=latent_channels,
        **config,
    )
    with torch.no_grad():
        if has_codes(name):
            model.quantize.embedding.weight.normal_()
        else:  # a log-variance of −30
            model.quant_conv.weight[latent_channels:] = 0
            model.quant_conv.bias[latent_channels:] = -30
    return model.eval()
