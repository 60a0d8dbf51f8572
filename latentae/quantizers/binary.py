"""One bit a channel: what LFQ and BSQ share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from latentae.quantizers.entropy import binary_entropies
from latentae.quantizers.gradient import straight_through
from latentae.quantizers.quantizer import Quantizer, check_counts, check_weights
from latentae.quantizers.result import FlatOutput

_MOST_BITS = 20


class BinaryQuantizer(Quantizer):
    """Each channel becomes ±m by its sign; the corners of that cube are the codebook, and nothing is learned.

    The index of a code is Σ_i 2^i [z_i > 0]: the first channel is the lowest bit, as in both papers.

    The losses are β times the squared distance to the code, a mean over values, and
    w (E[H(p)] − γ H(E[p])), in nats, with p the choice among all codes that ``binary_entropies`` describes:
    each choice shall be sure, and all of them together evenly spread.

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
        entropy_weight: float,
        diversity_weight: float,
        temperature: float,
        entropy_group_size: int,
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
        """What of latents [N, d] is compared with the codes."""
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
