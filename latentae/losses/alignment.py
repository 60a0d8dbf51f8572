"""Latents that resemble a frozen network's features (the VF loss of VA-VAE, arXiv 2501.01423)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

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
