"""Vector quantization with a codebook of moving averages (van den Oord et al. 2017, appendix A.1)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from latentae import distributed
from latentae.quantizers.codebook import CodebookQuantizer
from latentae.quantizers.quantizer import check_weights


class EMAQuantizer(CodebookQuantizer):
    """Each code is the moving average of the latents that chose it; only the commitment term is a loss.

    N ← γ N + (1 − γ) n and m ← γ m + (1 − γ) Σ z, with e = m / N and Laplace smoothing of N. This happens
    once per optimizer step, with n and Σ z summed over its micro-batches and over all ranks.

    Args:
        num_codes, code_dim, commitment_weight, gradient, init, revive_after: as in ``CodebookQuantizer``.
        decay: γ, in (0, 1).
        epsilon: the count that the smoothing adds to every code.

    Raises:
        ValueError: as ``CodebookQuantizer``; a decay outside (0, 1), a weight below zero.
    """

    average_counts: Tensor
    average_sums: Tensor
    pending_sums: Tensor

    def __init__(
        self,
        num_codes: int,
        code_dim: int,
        *,
        decay: float = 0.99,
        epsilon: float = 1e-5,
        **options: Any,
    ) -> None:
        super().__init__(num_codes, code_dim, codebook_weight=0.0, **options)  # codes are averages
        check_weights(epsilon=epsilon)
        if not 0 < decay < 1:
            raise ValueError(f"decay is {decay}, but must lie between 0 and 1")
        self.decay = decay
        self.epsilon = epsilon
        self.embedding.requires_grad_(False)

    def first_values(self) -> dict[str, Tensor]:
        weight = self.embedding.weight.detach()
        return {
            **super().first_values(),
            "average_counts": torch.ones(self.num_codes),
            # Weights on the meta device have no values: then ``start`` sets the averages.
            "average_sums": torch.zeros(weight.shape) if weight.is_meta else weight.clone(),
            "pending_sums": torch.zeros(weight.shape),
        }

    @property
    def upkeep(self) -> dict[str, Tensor]:
        return {
            **super().upkeep,
            "average_counts": self.average_counts,
            "average_sums": self.average_sums,
        }

    def losses(self, flat: Tensor, codes: Tensor) -> dict[str, Tensor]:
        return {"commitment": self.commitment_weight * F.mse_loss(flat, codes.detach())}

    def observe(self, flat: Tensor, indices: Tensor, keep: Tensor | None = None) -> None:
        super().observe(flat, indices, keep)
        seen = flat if keep is None else torch.where(keep, flat, 0)
        self.pending_sums.index_add_(0, indices, seen.to(self.pending_sums))

    def place(self, flat: Tensor, generator: torch.Generator) -> None:
        super().place(flat, generator)
        self.weights_changed()

    @torch.no_grad()
    def weights_changed(self) -> None:
        # The averages start at the current codes, whether drawn, placed or loaded.
        self.average_counts.fill_(1.0)
        self.average_sums.copy_(self.embedding.weight)

    def _commit_counts(self, counts: Tensor, accepted: Tensor | bool) -> None:
        super()._commit_counts(counts, accepted)
        sums = distributed.all_reduce_sum(self.pending_sums)
        self.pending_sums.zero_()
        # A refused step may contain NaN, which multiplying by 0 does not remove.
        accepted = torch.as_tensor(accepted, device=sums.device)
        for average, latest in ((self.average_counts, counts), (self.average_sums, sums)):
            average.copy_(torch.where(accepted, average.lerp(latest, 1 - self.decay), average))
        total = self.average_counts.sum()
        smoothed = (self.average_counts + self.epsilon) / (total + self.num_codes * self.epsilon) * total
        codes = self.average_sums / smoothed[:, None]
        self.embedding.weight.copy_(torch.where(accepted, codes, self.embedding.weight))

    @torch.no_grad()
    def replace(self, mask: Tensor, codes: Tensor) -> None:
        super().replace(mask, codes)
        self.average_counts.masked_fill_(mask, 1.0)
        self.average_sums.copy_(torch.where(mask[:, None], codes, self.average_sums))
