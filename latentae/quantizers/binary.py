"""One bit per channel: LFQ (Yu et al. 2023, MAGVIT-v2, arXiv 2310.05737) and BSQ (Zhao et al. 2024, arXiv
2406.07548).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from latentae.quantizers.entropy import binary_entropies
from latentae.quantizers.gradient import straight_through
from latentae.quantizers.quantizer import FlatOutput, Quantizer, check_counts, check_weights

_MOST_BITS = 20


class BinaryQuantizer(Quantizer):
    """Maps each channel to ±m by its sign. The codebook is the corners of that cube, and nothing is learned.

    The index of a code is Σ_i 2^i [z_i > 0]: the first channel is the lowest bit, as in both papers.

    The losses are β times the squared distance to the code, a mean over values, and
    w (E[H(p)] − γ H(E[p])), in nats, where p is the distribution over all codes that ``binary_entropies``
    describes. It makes each choice certain, and all of them together evenly spread.

    Args:
        bits: channels; there are 2^bits codes.
        magnitude: m.
        commitment_weight: β. entropy_weight: w. diversity_weight: γ.
        temperature: τ of p.
        entropy_group_size: bits over which H(E[p]) is exact; see ``binary_entropies``.

    Raises:
        ValueError: a number below one, more than 20 bits, a weight below zero, a temperature that is not
            positive.
    """

    def __init__(
        self,
        bits: int,
        magnitude: float,
        *,
        commitment_weight: float,
        entropy_weight: float = 0.1,
        diversity_weight: float = 1.0,
        temperature: float = 0.01,
        entropy_group_size: int = 10,
    ) -> None:
        check_counts(bits=bits, entropy_group_size=entropy_group_size)
        if bits > _MOST_BITS:
            raise ValueError(
                f"bits is {bits}, but at most {_MOST_BITS} are counted as one code: use grouped quantizers "
                "of fewer bits each"
            )
        check_weights(
            commitment_weight=commitment_weight,
            entropy_weight=entropy_weight,
            diversity_weight=diversity_weight,
        )
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}, but must be positive")
        super().__init__(num_codes=2**bits, code_dim=bits)
        self.magnitude = magnitude
        self.commitment_weight = commitment_weight
        self.entropy_weight = entropy_weight
        self.diversity_weight = diversity_weight
        self.temperature = temperature
        self.entropy_group_size = entropy_group_size

    def prepare(self, flat: Tensor) -> Tensor:
        """Maps latents [N, d] to what is compared with the codes."""
        return flat

    def quantize(self, flat: Tensor) -> FlatOutput:
        prepared = self.prepare(flat)
        positive = prepared > 0
        codes = torch.where(positive, 1.0, -1.0).to(prepared) * self.magnitude
        indices = (positive.long() * self._weights(flat.device)).sum(dim=1)
        return FlatOutput(straight_through(prepared, codes), indices, self._losses(prepared, codes))

    def look_up(self, indices: Tensor) -> Tensor:
        positive = indices[:, None] // self._weights(indices.device) % 2 == 1
        return torch.where(positive, 1.0, -1.0) * self.magnitude

    def _weights(self, device: torch.device) -> Tensor:
        """[d] int64, 2^i of channel i. Not by shifts, which torch's ONNX exporter cannot translate."""
        return 2 ** torch.arange(self.code_dim, device=device)

    def _losses(self, prepared: Tensor, codes: Tensor) -> dict[str, Tensor]:
        losses = {}
        if self.commitment_weight:
            losses["commitment"] = self.commitment_weight * F.mse_loss(prepared, codes)
        if self.entropy_weight:
            each, together = binary_entropies(
                prepared,
                self.magnitude,
                self.temperature,
                self.entropy_group_size,
                across_ranks=self.training,
            )
            losses["entropy"] = self.entropy_weight * (each - self.diversity_weight * together)
        return losses

    def remedies(self) -> list[str]:
        found = [f"entropy_weight={0.1 if self.entropy_weight == 0 else 2 * self.entropy_weight:g}"]
        if self.diversity_weight < 1:
            found.append("diversity_weight=1")
        if self.code_dim > 1:
            found.append(f"bits={self.code_dim - 1}")
        return [*found, "type=fsq"]


class LookupFreeQuantizer(BinaryQuantizer):
    """LFQ: codes are the signs of the latents, {−1, 1}^bits.

    The arguments are those of ``BinaryQuantizer``.
    """

    def __init__(self, bits: int, *, commitment_weight: float = 0.25, **options: Any) -> None:
        super().__init__(bits, 1.0, commitment_weight=commitment_weight, **options)


class BinarySphericalQuantizer(BinaryQuantizer):
    """BSQ: latents are scaled to unit length, and codes are signs / √bits, on the same sphere.

    The arguments are those of ``BinaryQuantizer``. On the sphere a latent is never far from its code, so the
    commitment term may be left out.
    """

    def __init__(self, bits: int, *, commitment_weight: float = 0.0, **options: Any) -> None:
        super().__init__(bits, max(bits, 1) ** -0.5, commitment_weight=commitment_weight, **options)

    def prepare(self, flat: Tensor) -> Tensor:
        return F.normalize(flat, dim=1)
