"""Lookup-free quantization (Yu et al. 2023, MAGVIT-v2, arXiv 2310.05737)."""

from __future__ import annotations

from latentae.quantizers.binary import BinaryQuantizer


class LookupFreeQuantizer(BinaryQuantizer):
    """Codes are the signs of the latents, {−1, 1}^bits.

    Args:
        bits, commitment_weight, entropy_weight, diversity_weight, temperature, entropy_group_size: as in
            ``BinaryQuantizer``.

    Raises:
        ValueError: as ``BinaryQuantizer``.
    """

    def __init__(
        self,
        bits: int,
        *,
        commitment_weight: float = 0.25,
        entropy_weight: float = 0.1,
        diversity_weight: float = 1.0,
        temperature: float = 0.01,
        entropy_group_size: int = 10,
    ) -> None:
        super().__init__(
            bits,
            1.0,
            commitment_weight=commitment_weight,
            entropy_weight=entropy_weight,
            diversity_weight=diversity_weight,
            temperature=temperature,
            entropy_group_size=entropy_group_size,
        )
