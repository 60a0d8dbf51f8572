"""How much of a table of codes is in use, in numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class CodebookHealth:
    """How much of a codebook is in use.

    Attributes:
        usage: share of the codes that occurred at least once, in [0, 1].
        perplexity: exp of the entropy of the code frequencies, in [1, num_codes].
    """

    usage: float
    perplexity: float


def code_counts(indices: Tensor, num_codes: int) -> Tensor:
    """How often each code occurs.

    Args:
        indices: [B, h, w], or [B, depth, h, w] of as many tables; each in [0, num_codes).
        num_codes: K, the codes of each table.

    Returns:
        [K] or [depth, K] int64.
    """
    if indices.ndim == 3:
        return torch.bincount(indices.flatten(), minlength=num_codes)
    depth = indices.shape[1]
    first = num_codes * torch.arange(depth, device=indices.device)
    together = torch.bincount((indices + first[:, None, None]).flatten(), minlength=depth * num_codes)
    return together.view(depth, num_codes)


def codebook_health(counts: Tensor) -> CodebookHealth:
    """Usage and perplexity from how often each code occurred.

    Args:
        counts: [K], or [depth, K] of as many tables: the usage is then the share of all their codes, and the
            perplexity the mean of theirs. Already summed over ranks where there are several.
    """
    counts = counts.double()
    frequencies = counts / counts.sum(dim=-1, keepdim=True).clamp(min=1)
    entropy = -torch.special.xlogy(frequencies, frequencies).sum(dim=-1)
    return CodebookHealth(usage=(counts > 0).double().mean().item(), perplexity=entropy.exp().mean().item())
