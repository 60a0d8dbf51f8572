"""Index backpropagation: every code learns from every latent (Shi et al. 2024, IBQ, arXiv 2412.02692)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentae.quantizers.entropy import softmax_entropies
from latentae.quantizers.gradient import straight_through
from latentae.quantizers.lookup import precise_product
from latentae.quantizers.quantizer import FlatOutput, Quantizer, check_weights, table_of


class IBQuantizer(Quantizer):
    """IBQ: chooses the code with the largest product z·e. The gradient passes through the whole softmax.

    With p = softmax(z Eᵀ) and the one-hot choice o, zq = (o + p − sg[p]) E has the value of the code, and a
    gradient to the latents and to all codes. The losses are
    ‖zq − z‖² + ‖sg[zq'] − z‖² + β ‖zq' − sg[z]‖², where zq' = o E, each a mean over values, and, where
    weighted, the entropy penalty E[H(p_τ)] − H(E[p_τ]) with p_τ = softmax(z Eᵀ / τ).

    The products of all latents with all codes are stored for the gradient: N × K numbers.

    Args:
        num_codes: K. code_dim: d.
        codebook_weight: β, which stands here on the term that pulls the codes to their latents.
        entropy_weight: of the entropy penalty; 0 leaves it out.
        temperature: τ.

    Raises:
        ValueError: a number below one, a weight below zero, a temperature that is not positive.
    """

    def __init__(
        self,
        num_codes: int,
        code_dim: int,
        *,
        codebook_weight: float = 0.25,
        entropy_weight: float = 0.0,
        temperature: float = 0.01,
    ) -> None:
        super().__init__(num_codes, code_dim)
        check_weights(codebook_weight=codebook_weight, entropy_weight=entropy_weight)
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}, but must be positive")
        self.codebook_weight = codebook_weight
        self.entropy_weight = entropy_weight
        self.temperature = temperature
        self.embedding = nn.Embedding(num_codes, code_dim)
        nn.init.uniform_(self.embedding.weight, -1 / num_codes, 1 / num_codes)

    def quantize(self, flat: Tensor) -> FlatOutput:
        table = table_of(self.embedding, flat.device).to(flat.dtype)
        logits = precise_product(flat, table.T)
        indices = logits.argmax(dim=1)
        codes = F.embedding(indices, table)
        quantized = straight_through(flat, codes)
        if torch.is_grad_enabled():
            # The derivative of (o + p − sg[p]) E: through p for E held constant, and that of the code itself.
            soft = logits.softmax(dim=1) @ table.detach()
            quantized = codes + (soft - soft.detach())
        return FlatOutput(quantized, indices, self._losses(flat, quantized, codes, logits))

    def _losses(self, flat: Tensor, quantized: Tensor, codes: Tensor, logits: Tensor) -> dict[str, Tensor]:
        losses = {
            "codebook": F.mse_loss(quantized, flat) + self.codebook_weight * F.mse_loss(codes, flat.detach()),
            "commitment": F.mse_loss(flat, codes.detach()),
        }
        if self.entropy_weight:
            each, together = softmax_entropies(logits / self.temperature, across_ranks=self.training)
            losses["entropy"] = self.entropy_weight * (each - together)
        return losses

    def look_up(self, indices: Tensor) -> Tensor:
        return self.embedding(indices)

    def remedies(self) -> list[str]:
        heavier = 0.05 if self.entropy_weight == 0 else 2 * self.entropy_weight
        return [f"entropy_weight={heavier:g}", "type=ema", "type=simvq"]
