"""Losses on latents: equivariance, noise-augmented decoding, low-passed decoding, aligned features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from latentae import distributed
from latentae.losses.feature_maps import resize


@dataclass(frozen=True)
class Transform:
    """τ of EQ-VAE: a change of scale, then quarter turns.

    Attributes:
        scale: of both sides, in (0, 1]; sides are rounded to whole latents, of which at least one stays.
        quarter_turns: how many times it rotates by 90 degrees, 0 to 3.
    """

    scale: float
    quarter_turns: int = 0

    def latents(self, latents: Tensor) -> Tensor:
        """Applies τ to latents [B, c, h, w]."""
        return self._apply(latents, 1)

    def images(self, images: Tensor, factor: int) -> Tensor:
        """Applies τ to images [B, C, H, W]. The size is that of the decoded transformed latents.

        Args:
            factor: pixels per latent along each side; divides height and width.
        """
        return self._apply(images, factor)

    def _apply(self, values: Tensor, factor: int) -> Tensor:
        height, width = (max(1, round(self.scale * (side // factor))) * factor for side in values.shape[-2:])
        return torch.rot90(resize(values, (height, width)), self.quarter_turns, dims=(-2, -1))


@dataclass(frozen=True)
class Draw:
    """The transformation of one step, and whether it applies to images or latents.

    Attributes:
        transform: τ.
        before_encoding: transform the images before they are encoded. This asks nothing of the latents, but
            keeps training the model on small images. False: transform the latents.
    """

    transform: Transform
    before_encoding: bool = False


@dataclass(frozen=True)
class Equivariance:
    """EQ-VAE (Kouzelis et al. 2025, arXiv 2502.09509): latents that scale and rotate as the images do.

    In some steps the losses compare decode(τ z) with τ x instead of decode(z) with x. One τ serves a whole
    step and all its losses, including the adversarial one. Nothing is decoded twice, and τ z is at most as
    large as z, so a step takes less time and no more memory. In some of the other steps the images are made
    smaller before they are encoded (the authors' "prior preservation" at low resolution). The authors' code
    resizes without antialiasing; here both sides are antialiased.

    Args:
        probability: of a step with transformed latents.
        min_scale: scales are drawn evenly from here to 1.
        rotate: whether latents are also rotated, by one to three quarter turns.
        low_resolution_probability: of smaller images, in a step without transformed latents.
    """

    probability: float = 0.5
    min_scale: float = 0.25
    rotate: bool = True
    low_resolution_probability: float = 0.25

    def draw(self, generator: torch.Generator) -> Draw | None:
        """Draws what a step transforms; None: nothing.

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


@dataclass(frozen=True)
class LatentNoise:
    """Noise-augmented decoding: decodes z + σ s n, with n ~ N(0, I) and σ ~ |N(0, scale²)| per image.

    It trains the decoder to tolerate imperfect latents, such as a denoiser's samples (RAE, Zheng et al. 2025,
    arXiv 2510.11690). In the paper the latents are normalised and the encoder is frozen. An encoder that
    learns could make its latents large, and any noise small in comparison. So the noise is multiplied by s,
    the standard deviation of the latents of the whole batch, without a gradient. The cost is negligible.

    Args:
        scale: in units of the latents' standard deviation.
    """

    scale: float

    def __call__(self, latents: Tensor, noise: Tensor, strength: Tensor) -> Tensor:
        """Returns latents with noise. Every rank must call it.

        Args:
            latents: [B, c, h, w].
            noise: [B, c, h, w] standard normal numbers.
            strength: [B] standard normal numbers. σ is ``scale`` times their absolute value.
        """
        sigma = self.scale * strength.abs().to(latents.dtype) * deviation(latents).to(latents.dtype)
        return latents + sigma[:, None, None, None] * noise.to(latents.dtype)


@torch.no_grad()
def deviation(latents: Tensor) -> Tensor:
    """Returns the root mean square over channels of the channels' standard deviations, over all ranks."""
    values = latents.detach().to(torch.promote_types(latents.dtype, torch.float32))
    moments = torch.stack([values.mean(dim=(0, 2, 3)), values.square().mean(dim=(0, 2, 3))])
    mean, square = distributed.all_reduce_mean(moments)
    return (square - mean.square()).clamp_min(0).mean().sqrt()


class Spectral:
    """Scale equivariance as an extra term (Skorokhodov et al. 2025, arXiv 2502.14831).

    The term is weight · d(decode(z̃), x̃), where z̃ and x̃ are made smaller and d is the reconstruction and
    perceptual loss. Resizing removes the upper part of the spectrum. So the decoder cannot store coarse image
    structure in fine latent structure, which a denoiser would get wrong. Unlike EQ-VAE it keeps the ordinary
    reconstruction in every step. The decoder and the losses run a second time, on at most a quarter of the
    pixels.

    Args:
        weight: of the term.
        factors: what the sides are divided by. Each step draws one of them uniformly.

    Raises:
        ValueError: no factor, or one below 2.
    """

    def __init__(self, weight: float = 0.25, factors: Sequence[int] = (2, 4)) -> None:
        if not factors or min(factors) < 2:
            raise ValueError(f"factors are {list(factors)}: give whole numbers of 2 or more, such as [2, 4]")
        self.weight = weight
        self.factors = tuple(factors)

    def draw(self, generator: torch.Generator) -> int:
        """Draws a step's factor. The generator is on the CPU, in the same state on every rank."""
        return self.factors[int(torch.randint(len(self.factors), (), generator=generator))]


def low_pass(values: Tensor, factor: int, unit: int = 1) -> Tensor:
    """Resizes latents or images [B, C, H, W] to sides ``factor`` times smaller, rounded to whole units.

    Args:
        unit: 1 for latents. Pixels per latent for images, so that they match the decoded low-passed latents.
    """
    height, width = (max(1, round(side // unit / factor)) * unit for side in values.shape[-2:])
    return resize(values, (height, width))


# Numbers of a block of a similarity matrix: 16 MiB in float32.
_BLOCK = 2**22


@dataclass(frozen=True)
class Alignment:
    """The VF loss of VA-VAE (arXiv 2501.01423): latents that resemble a frozen network's features.

    With latents z projected by a learned 1×1 convolution, features f, positions i and j of an image:

    - marginal cosine similarity: mean relu(1 − m₁ − cos(zᵢ, fᵢ));
    - marginal distance matrix similarity: mean relu(|cos(zᵢ, zⱼ) − cos(fᵢ, fⱼ)| − m₂).

    Args:
        weight: of their sum.
        adaptive: multiplies the weight by ‖∇ reconstruction loss‖ / (‖∇ this loss‖ + 1e-4), the gradients
            taken at the encoder's last convolution.
        cosine_margin: m₁.
        similarity_margin: m₂.
    """

    weight: float = 0.1
    adaptive: bool = True
    cosine_margin: float = 0.5
    similarity_margin: float = 0.25

    def __call__(self, projected: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the cosine and the similarity term, unweighted scalars.

        Args:
            projected: [B, d, h, w] projected latents.
            features: [B, d, h, w] of the same images, without a gradient.
        """
        with torch.autocast(projected.device.type, enabled=False):
            z, f = (
                F.normalize(x.flatten(2).to(torch.promote_types(x.dtype, torch.float32)), dim=1)
                for x in (projected, features)
            )
            cosine = F.relu(1 - self.cosine_margin - (z * f).sum(dim=1)).mean()
            similarity: Tensor = _Similarity.apply(z, f, self.similarity_margin)
        return cosine, similarity


class _Similarity(torch.autograd.Function):
    """mean relu(|zᵢ·zⱼ − fᵢ·fⱼ| − m) over the positions i and j of each image, in blocks of rows.

    The matrices zᵀz and fᵀf of an image have (h·w)² numbers, too many to hold for large latents. Each block
    of their difference D adds its part to the value and, if needed, to the gradient: with G = ∂/∂D, which is
    symmetric like D, ∂/∂z = 2 z G. Each block is computed once and then dropped.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, f: Tensor, margin: float) -> Tensor:
        positions = z.shape[2]
        count = len(z) * positions**2
        images = max(1, _BLOCK // positions**2)
        rows = max(1, _BLOCK // (min(images, len(z)) * positions))
        total = z.new_zeros(())
        gradient = torch.empty_like(z) if ctx.needs_input_grad[0] else None
        for first in range(0, len(z), images):
            own_z, own_f = (x[first : first + images] for x in (z, f))
            for start in range(0, positions, rows):
                part = slice(start, start + rows)
                difference = own_z[:, :, part].transpose(1, 2) @ own_z
                difference -= own_f[:, :, part].transpose(1, 2) @ own_f
                total += F.relu(difference.abs() - margin).sum()
                if gradient is not None:
                    signs = torch.where(difference.abs() > margin, difference.sign(), 0.0)
                    gradient[first : first + images, :, part] = own_z @ signs.transpose(1, 2)
        if gradient is not None:
            ctx.save_for_backward(gradient.mul_(2 / count))
        return total / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (own,) = ctx.saved_tensors
        return own * gradient, None, None
