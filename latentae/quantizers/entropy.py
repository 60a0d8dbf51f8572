"""The two terms of MAGVIT-v2's entropy penalty: certainty of each choice, and even use of all codes."""

from __future__ import annotations

import torch
from torch import Tensor

from latentae import distributed


def softmax_entropies(logits: Tensor, *, across_ranks: bool) -> tuple[Tensor, Tensor]:
    """Returns the mean entropy of each latent's choice, and the entropy of the mean choice, in nats.

    Args:
        logits: [N, K].
        across_ranks: take the mean choice over the batches of all ranks; every rank must call it then.
    """
    log_probabilities = logits.log_softmax(dim=1)
    probabilities = log_probabilities.exp()
    each = -(probabilities * log_probabilities).sum(dim=1).mean()
    return each, _entropy(mean_over_ranks(probabilities.mean(dim=0), across_ranks=across_ranks))


def binary_entropies(
    latents: Tensor, magnitude: float, temperature: float, group_size: int, *, across_ranks: bool
) -> tuple[Tensor, Tensor]:
    """Returns the same for choices among all codes {−m, m}^d, with p(c | z) ∝ exp(−‖z − c‖² / τ).

    The bits of such a choice are independent, each with P(+) = σ(4 m z / τ), so the entropy of each choice is
    the sum of its bits'. That of the mean choice is computed over groups of bits and summed, as BSQ does
    (arXiv 2406.07548): exact where one group holds all bits, else an upper bound.

    Args:
        latents: [N, d].
        magnitude: m. temperature: τ.
        group_size: bits of a group; 2^group_size probabilities are held for each latent and group.
        across_ranks: as in ``softmax_entropies``.
    """
    logits = 4 * magnitude / temperature * latents
    positive, negative = torch.sigmoid(logits), torch.sigmoid(-logits)
    # log σ(x) = −softplus(−x) stays exact where a probability rounds to 0 or 1.
    softplus = torch.nn.functional.softplus
    each = (positive * softplus(-logits) + negative * softplus(logits)).sum(dim=1).mean()
    together = latents.new_zeros(())
    for first in range(0, latents.shape[1], group_size):
        bits = slice(first, first + group_size)
        joint = _joint(negative[:, bits], positive[:, bits]).mean(dim=0)
        together = together + _entropy(mean_over_ranks(joint, across_ranks=across_ranks))
    return each, together


def _joint(negative: Tensor, positive: Tensor) -> Tensor:
    """Probabilities [N, 2^g] of all words of g independent bits."""
    words = negative.new_ones(len(negative), 1)
    for bit in range(negative.shape[1]):
        words = torch.cat([words * negative[:, bit : bit + 1], words * positive[:, bit : bit + 1]], dim=1)
    return words


def mean_over_ranks(own: Tensor, *, across_ranks: bool = True) -> Tensor:
    """Returns the mean over ranks of a mean over this rank's batch, for losses that are not linear in it.

    Args:
        own: any shape, the same on every rank.
        across_ranks: false: returns ``own``. True: every rank must call this.
    """
    if not across_ranks or distributed.world_size() == 1:
        return own
    # The value is that of all ranks, the gradient that of this one: averaged over ranks, as gradients are,
    # these are then what one rank with the whole batch has.
    return own + (distributed.all_reduce_mean(own) - own).detach()


def _entropy(probabilities: Tensor) -> Tensor:
    """Returns the entropy of one distribution [K], in nats."""
    # The slope of x log x at 0 is −∞: probabilities that underflowed are clamped.
    smallest = torch.finfo(probabilities.dtype).tiny
    return -(probabilities * probabilities.clamp(min=smallest).log()).sum()
