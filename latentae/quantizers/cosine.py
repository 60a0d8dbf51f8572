"""Codes on the unit sphere, chosen by direction (Yu et al. 2022, ViT-VQGAN, arXiv 2110.04627; LlamaGen)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from latentae.quantizers.codebook import CodebookQuantizer, two_way_losses
from latentae.quantizers.quantizer import Weights, check_weights, precise


class CosineQuantizer(CodebookQuantizer):
    """Latents and codes are divided by their length, and the code of the smallest angle is chosen.

    Losses are those of ``VectorQuantizer`` between unit vectors, and codes of unit length are put out. The
    papers look up in few dimensions (LlamaGen: 8), to which the convolution in front of the quantizer
    projects.

    Since all codes have the same length, the nearest one by Euclidean distance is the same for a latent of
    any length: a plain codebook of the unit codes quantizes alike.

    Args:
        num_codes, code_dim, gradient, init, revive_after: as in ``CodebookQuantizer``; ``init="uniform"``
            draws codes from U(−1/K, 1/K), and scales them to unit length; k-means does so in each round.
        commitment_weight, codebook_weight: as in ``VectorQuantizer``.

    Raises:
        ValueError: as ``CodebookQuantizer``; a weight below zero.
    """

    spherical = True

    def __init__(
        self,
        num_codes: int,
        code_dim: int,
        *,
        commitment_weight: float = 0.25,
        codebook_weight: float = 1.0,
        gradient: str = "straight_through",
        init: str = "data",
        revive_after: int | None = None,
    ) -> None:
        super().__init__(num_codes, code_dim, gradient=gradient, init=init, revive_after=revive_after)
        check_weights(commitment_weight=commitment_weight, codebook_weight=codebook_weight)
        self.commitment_weight = commitment_weight
        self.codebook_weight = codebook_weight
        weight = self.embedding.weight
        weight.data = F.normalize(weight.data, dim=1)

    def table(self, device: torch.device) -> Tensor:
        return self.prepare(precise(self._weight(device)))

    def prepare(self, flat: Tensor) -> Tensor:
        return F.normalize(flat, dim=1)

    def losses(self, flat: Tensor, codes: Tensor) -> dict[str, Tensor]:
        return two_way_losses(
            flat, codes, codebook_weight=self.codebook_weight, commitment_weight=self.commitment_weight
        )

    def moved_weights(self, shift: Tensor, scale: Tensor) -> Weights | None:
        return None  # directions are seen from the origin
