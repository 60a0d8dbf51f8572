"""Latents that scale and turn as the images do (EQ-VAE, Kouzelis et al. 2025, arXiv 2502.09509)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latentae.losses.resizing import resize


@dataclass(frozen=True)
class Transform:
    """τ: a change of scale, then quarter turns.

    Attributes:
        scale: of both sides, in (0, 1]; sides are rounded to whole latents, of which at least one stays.
        quarter_turns: how often it is turned by 90 degrees, 0 to 3.
    """

    scale: float
    quarter_turns: int = 0

    def latents(self, latents: Tensor) -> Tensor:
        """τ of latents [B, c, h, w]."""
        return self._apply(latents, 1)

    def images(self, images: Tensor, factor: int) -> Tensor:
        """τ of images [B, C, H, W], as large as what the transformed latents are decoded to.

        Args:
            factor: pixels per latent along each side; divides height and width.
        """
        return self._apply(images, factor)

    def _apply(self, values: Tensor, factor: int) -> Tensor:
        height, width = (max(1, round(self.scale * (side // factor))) * factor for side in values.shape[-2:])
        return torch.rot90(resize(values, (height, width)), self.quarter_turns, dims=(-2, -1))


@dataclass(frozen=True)
class Draw:
    """What a step does.

    Attributes:
        transform: τ.
        before_encoding: whether it is the images that are transformed and then encoded, which asks nothing of
            the latents but keeps small images in what the model knows; else the latents are.
    """

    transform: Transform
    before_encoding: bool = False


@dataclass(frozen=True)
class Equivariance:
    """In some steps the losses compare decode(τ z) with τ x instead of decode(z) with x.

    One τ serves a whole step and all its losses, the adversarial one too. Nothing is decoded twice, and what
    is decoded is at most as large as without, so that a step takes less time and no more memory. In some of
    the other steps the images are made smaller before they are encoded (in the authors' program, their "prior
    preservation" at low resolution). Their program resizes without antialiasing; here both sides have it.

    Args:
        probability: of a step with transformed latents.
        min_scale: scales are drawn evenly from here to 1.
        rotate: whether latents are also turned, by one to three quarters.
        low_resolution_probability: of smaller images, in a step that has no transformed latents.
    """

    probability: float = 0.5
    min_scale: float = 0.25
    rotate: bool = True
    low_resolution_probability: float = 0.25

    def draw(self, generator: torch.Generator) -> Draw | None:
        """What a step does, or None where it is one like any other.

        Args:
            generator: on the CPU, in the same state on every rank.
        """
        which, low, scale, turn = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        scale = self.min_scale + (1 - self.min_scale) * scale
        if which < self.probability:
            return Draw(Transform(scale, 1 + int(3 * turn) if self.rotate else 0))
        if low < self.low_resolution_probability:
            return Draw(Transform(scale), before_encoding=True)
        return None
