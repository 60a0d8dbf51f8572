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


# Numbers of a block of a similarity matrix: 16 MiB in float32.
_BLOCK = 2**22


@dataclass(frozen=True)
class Alignment:
    """The two terms of the VF loss, their margins and their weight.

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
        """The cosine and the similarity term, scalars, unweighted.

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
    of their difference D gives its part of the value and, where one is wanted, of the gradient: with
    G = ∂/∂D, which is symmetric as D is, ∂/∂z = 2 z G. A block is computed once and then dropped.
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
