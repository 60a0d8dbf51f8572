"""Usage statistics of codebooks: usage, perplexity, deciles."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from latentae.devices import to_float64_on_cpu


@dataclass
class CodebookHealth:
    """The share of a codebook that is in use.

    Attributes:
        usage: share of the codes that occurred at least once, in [0, 1].
        perplexity: exp of the entropy of the code frequencies, in [1, num_codes].
    """

    usage: float
    perplexity: float


def code_counts(indices: Tensor, num_codes: int) -> Tensor:
    """Counts how often each code occurs.

    Args:
        indices: [B, h, w], or [B, depth, h, w] of as many tables; each in [0, num_codes).
        num_codes: K, the codes of each table.

    Returns:
        [K] or [depth, K] int64.
    """
    if indices.ndim == 3:
        return _count(indices, num_codes)
    depth = indices.shape[1]
    first = num_codes * torch.arange(depth, device=indices.device)
    return _count(indices + first[:, None, None], depth * num_codes).view(depth, num_codes)


def codebook_health(counts: Tensor) -> CodebookHealth:
    """Returns usage and perplexity from how often each code occurred.

    Args:
        counts: [K], or [depth, K] for several tables: the usage is then the share of all their codes, and the
            perplexity the mean over tables. Counts must already be summed over ranks.
    """
    tables = table_healths(counts)
    return CodebookHealth(
        usage=sum(table.usage for table in tables) / len(tables),
        perplexity=sum(table.perplexity for table in tables) / len(tables),
    )


def table_healths(counts: Tensor) -> list[CodebookHealth]:
    """Returns ``codebook_health`` of each table. The host waits for the device once.

    Args:
        counts: [K], or [depth, K].
    """
    counts = to_float64_on_cpu(counts).reshape(-1, counts.shape[-1])
    frequencies = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    perplexities = (-torch.special.xlogy(frequencies, frequencies).sum(dim=1)).exp()
    used = (counts > 0).double().mean(dim=1)
    return [CodebookHealth(*pair) for pair in torch.stack([used, perplexities], dim=1).tolist()]


def usage_deciles(counts: Tensor) -> list[float]:
    """Returns the share of all choices on the most used tenth of the codes, the next tenth, and so on.

    A codebook that is used evenly has 0.1 ten times. Zeros at the end are codes that never occur. If ten does
    not divide the number of codes, a code on a border counts for both sides in proportion.

    Args:
        counts: [K].

    Returns:
        10 decreasing numbers that sum to 1; all 0 if nothing was counted.
    """
    codes, counts = counts.shape[0], to_float64_on_cpu(counts)
    total = counts.sum().clamp(min=1)
    reached = torch.cat([total.new_zeros(1), counts.sort(descending=True).values.cumsum(0) / total])
    borders = torch.arange(11, dtype=torch.float64) * codes / 10
    below = borders.floor().long().clamp(max=codes - 1)
    curve = reached[below] + (borders - below) * (reached[below + 1] - reached[below])
    shares: list[float] = curve.diff().tolist()
    return shares


def reachable_usage(num_codes: int, positions: int) -> float:
    """Returns the expected usage of codes that are all equally likely: 1 − (1 − 1/K)^N.

    Args:
        num_codes: K.
        positions: N, how often a code was chosen.
    """
    if num_codes == 1:
        return float(positions > 0)
    return -math.expm1(positions * math.log1p(-1 / num_codes))


def _count(indices: Tensor, num_codes: int) -> Tensor:
    """[num_codes] int64."""
    # Not bincount, which on a GPU makes Python wait for the highest index.
    indices = indices.flatten().long()
    return indices.new_zeros(num_codes).index_add_(0, indices, torch.ones_like(indices))
