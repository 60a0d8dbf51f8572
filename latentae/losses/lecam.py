"""LeCAM: logits stay near where the other side's have been (Tseng et al. 2021, arXiv 2104.03310)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentae import distributed


class LeCAM(nn.Module):
    """E relu(D(x) − ā(x̂))² + E relu(ā(x) − D(x̂))², where ā are moving averages of mean logits.

    A discriminator that learns a small data set by heart drives the two sets of logits apart without end;
    this term, added to its loss, holds them. The averages follow once per optimizer step the mean over its
    micro-batches and ranks, all of the same size: ā ← γ ā + (1 − γ) E D. The first step starts them, and is
    itself without the term.

    Args:
        weight: the term's factor in the discriminator's loss.
        decay: γ, in [0, 1).

    Raises:
        ValueError: a decay outside [0, 1).
    """

    averages: Tensor  # [2] of real and of fake logits
    started: Tensor
    pending: Tensor  # [3] sums of both means over the micro-batches of this step, and how many these are

    def __init__(self, weight: float, decay: float = 0.999) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}, but must be at least 0 and less than 1")
        self.weight = weight
        self.decay = decay
        self.register_buffer("averages", torch.zeros(2))
        self.register_buffer("started", torch.tensor(False))
        self.register_buffer("pending", torch.zeros(3), persistent=False)

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """The unweighted term, a scalar, from logits of any shape; 0 before the first ``commit``."""
        average_real, average_fake = self.averages
        term = F.relu(real - average_fake).square().mean() + F.relu(average_real - fake).square().mean()
        return torch.where(self.started, term, 0.0)

    @torch.no_grad()
    def observe(self, real: Tensor, fake: Tensor) -> None:
        """Takes the logits of a micro-batch, for the next ``commit``."""
        means = torch.stack([real.mean(), fake.mean(), torch.ones_like(real.mean())])
        self.pending += means.to(self.pending)

    @torch.no_grad()
    def commit(self, accepted: Tensor | bool = True) -> None:
        """The averages follow what was observed since the last call; every rank must call it.

        Args:
            accepted: whether the step was made; what was seen in one that was not is forgotten. A boolean
                scalar on the device, or a bool, the same on every rank.
        """
        *sums, count = distributed.all_reduce_sum(self.pending)
        self.pending.zero_()
        latest = torch.stack(sums) / count.clamp(min=1)
        followed = torch.where(self.started, self.averages.lerp(latest, 1 - self.decay), latest)
        # Chosen, not multiplied: what is not accepted may be NaN.
        taken = (count > 0) & accepted
        self.averages.copy_(torch.where(taken, followed, self.averages))
        self.started.logical_or_(taken)
