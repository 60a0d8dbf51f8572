"""Codes on the unit sphere, chosen by direction (Yu et al. 2022, ViT-VQGAN, arXiv 2110.04627; LlamaGen)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from latentae.quantizers.codebook import CodebookQuantizer
from latentae.quantizers.quantizer import Weights, precise


class CosineQuantizer(CodebookQuantizer):
    """Scales latents and codes to unit length and chooses the code with the smallest angle.

    The losses are between unit vectors, and the output is codes of unit length. The papers look up in few
    dimensions (LlamaGen: 8), to which the convolution in front of the quantizer projects.

    All codes have the same length, so the nearest one by Euclidean distance is the same for a latent of any
    length: a plain codebook of the unit codes quantizes alike. ``init="uniform"`` scales the codes it draws
    to unit length. K-means does so in each round.
    """

    spherical = True

    def initialise(self) -> None:
        super().initialise()
        weight = self.embedding.weight
        weight.data = F.normalize(weight.data, dim=1)

    def table(self, device: torch.device) -> Tensor:
        return self.prepare(precise(super().table(device)))

    def prepare(self, flat: Tensor) -> Tensor:
        return F.normalize(flat, dim=1)

    def moved_weights(self, shift: Tensor, scale: Tensor) -> Weights | None:
        return None  # directions depend on where the origin is
