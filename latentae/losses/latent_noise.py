"""A decoder that does with latents that are not quite right (RAE, Zheng et al. 2025, arXiv 2510.11690)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latentae import distributed


@dataclass(frozen=True)
class LatentNoise:
    """Decodes z + σ s n, n ~ N(0, I), with σ ~ |N(0, scale²)| for each image: noise-augmented decoding.

    A denoiser's samples are never exactly what an encoder gives, and a decoder that has seen noise forgives
    it. In the paper the latents are normalised and the encoder is frozen. An encoder that learns could make
    its latents large, and so any noise small: s, the standard deviation of the latents of the whole batch,
    without a gradient, takes that way out. It costs no time and memory worth the name.

    Args:
        scale: in units of the latents' standard deviation.
    """

    scale: float

    def __call__(self, latents: Tensor, noise: Tensor, strength: Tensor) -> Tensor:
        """Noisy latents; every rank calls it.

        Args:
            latents: [B, c, h, w].
            noise: [B, c, h, w] standard normal numbers.
            strength: [B] standard normal numbers, σ is ``scale`` times their size.
        """
        sigma = self.scale * strength.abs().to(latents.dtype) * deviation(latents).to(latents.dtype)
        return latents + sigma[:, None, None, None] * noise.to(latents.dtype)


@torch.no_grad()
def deviation(latents: Tensor) -> Tensor:
    """The root mean square, over channels, of each channel's standard deviation in all ranks' latents."""
    values = latents.detach().to(torch.promote_types(latents.dtype, torch.float32))
    moments = torch.stack([values.mean(dim=(0, 2, 3)), values.square().mean(dim=(0, 2, 3))])
    mean, square = distributed.all_reduce_mean(moments)
    return (square - mean.square()).clamp_min(0).mean().sqrt()
