"""Binary spherical quantization (Zhao et al. 2024, BSQ, arXiv 2406.07548)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from latentae.quantizers.binary import BinaryQuantizer


class BinarySphericalQuantizer(BinaryQuantizer):
    """Latents are scaled to unit length, and codes are the signs over √bits, which lie on the same sphere.

    Args:
        bits, commitment_weight, entropy_weight, diversity_weight, temperature, entropy_group_size: as in
            ``BinaryQuantizer``. On the sphere a latent is never far from its code, so that the commitment
            term may be left out.

    Raises:
        ValueError: as ``BinaryQuantizer``.
    """

    def __init__(
        self,
        bits: int,
        *,
        commitment_weight: float = 0.0,
        entropy_weight: float = 0.1,
        diversity_weight: float = 1.0,
        temperature: float = 0.01,
        entropy_group_size: int = 10,
    ) -> None:
        super().__init__(
            bits,
            max(bits, 1) ** -0.5,
            commitment_weight=commitment_weight,
            entropy_weight=entropy_weight,
            diversity_weight=diversity_weight,
            temperature=temperature,
            entropy_group_size=entropy_group_size,
        )

    def prepare(self, flat: Tensor) -> Tensor:
        return F.normalize(flat, dim=1)
