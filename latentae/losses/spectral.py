"""Low-passed latents that decode to low-passed images (Skorokhodov et al. 2025, arXiv 2502.14831)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from latentae.losses.resizing import resize


class Spectral:
    """Scale equivariance as a further term: weight · d(decode(z̃), x̃), with z̃ and x̃ made smaller.

    d is the reconstruction and perceptual loss. Resizing takes away the upper part of the spectrum, so that
    the decoder cannot keep the coarse structure of an image in fine structure of its latents, which a
    denoiser would get wrong. Unlike EQ-VAE it leaves the ordinary reconstruction in every step. The decoder
    and the losses run a second time, on a quarter of the pixels or fewer.

    Args:
        weight: of the term.
        factors: by how much the sides are divided; a step takes one of them, drawn evenly.

    Raises:
        ValueError: no factor, or one below 2.
    """

    def __init__(self, weight: float = 0.25, factors: Sequence[int] = (2, 4)) -> None:
        if not factors or min(factors) < 2:
            raise ValueError(f"factors are {list(factors)}: give whole numbers of 2 or more, such as [2, 4]")
        self.weight = weight
        self.factors = tuple(factors)

    def draw(self, generator: torch.Generator) -> int:
        """The factor of a step; the generator is on the CPU, in the same state on every rank."""
        return self.factors[int(torch.randint(len(self.factors), (), generator=generator))]


def low_pass(values: Tensor, factor: int, unit: int = 1) -> Tensor:
    """Latents or images [B, C, H, W] with sides ``factor`` times smaller, rounded to whole units.

    Args:
        unit: 1 for latents, pixels per latent for images, which are then as large as their low-passed latents
            are decoded to.
    """
    height, width = (max(1, round(side // unit / factor)) * unit for side in values.shape[-2:])
    return resize(values, (height, width))
