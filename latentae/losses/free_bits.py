"""Free bits: a divergence below a threshold costs nothing (Kingma et al. 2016, arXiv 1606.04934)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from latentae import distributed


@dataclass(frozen=True)
class FreeBits:
    """Σ_j max(λ, E D_j) over groups j of latents, E the mean over the batch of all ranks.

    A group below λ has no gradient, so that the posterior may keep that much information for nothing. Whether
    it is below is decided for all ranks alike: their gradients' mean is that of one rank with their batches.

    Attributes:
        nats: λ, of each group and image.
        per: the groups: ``channel``, each summed over its h·w positions as in the paper, or ``image``, one
            group of all latents.
    """

    nats: float
    per: Literal["channel", "image"] = "channel"

    def __call__(self, divergence: Tensor) -> Tensor:
        """What is paid for a divergence [B, c, h, w], in nats per image: a scalar. Every rank calls it."""
        groups = self._groups(divergence)
        return torch.where(self._is_free(groups), self.nats, groups).sum()

    @torch.no_grad()
    def count_free(self, divergence: Tensor) -> Tensor:
        """How many groups of a divergence [B, c, h, w] cost nothing: a scalar. Every rank calls it."""
        return self._is_free(self._groups(divergence)).sum().to(divergence.dtype)

    def _groups(self, divergence: Tensor) -> Tensor:
        """Mean over this rank's images: [c], or [1] of all latents."""
        channels = divergence.sum(dim=(2, 3)).mean(dim=0)
        return channels if self.per == "channel" else channels.sum(dim=0, keepdim=True)

    def _is_free(self, groups: Tensor) -> Tensor:
        return distributed.all_reduce_mean(groups.detach()) <= self.nats
