"""Latents that resemble a frozen network's features (the VF loss of VA-VAE, arXiv 2501.01423)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


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
        z, f = (
            F.normalize(x.flatten(2).to(torch.promote_types(x.dtype, torch.float32)), dim=1)
            for x in (projected, features)
        )
        cosine = F.relu(1 - self.cosine_margin - (z * f).sum(dim=1)).mean()
        difference = z.transpose(1, 2) @ z - f.transpose(1, 2) @ f
        return cosine, F.relu(difference.abs() - self.similarity_margin).mean()
