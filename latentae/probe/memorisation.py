"""Whether generated pictures are copies: their nearest training images, by features of a network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_ROWS = 512


@dataclass(frozen=True)
class Nearest:
    """The nearest of a set for each query.

    Attributes:
        distances: [N] Euclidean distance of the features.
        positions: [N] which of the set.
    """

    distances: Tensor
    positions: Tensor


@dataclass(frozen=True)
class Memorisation:
    """Distances to the nearest training image, as medians, and how many samples are suspiciously near.

    Attributes:
        samples: of generated pictures.
        held_out: of held-out images as the autoencoder makes them: what new pictures have.
        copies: of training images as the autoencoder makes them: what a perfect copy would have.
        copied_share: share of the samples nearer to a training image than nearly all (95 %) of the held-out
            ones; 0.05 is what held-out images themselves would give.
    """

    samples: float
    held_out: float
    copies: float
    copied_share: float


def nearest(queries: Tensor, others: Tensor) -> Nearest:
    """For each of the features [N, d] the nearest one of [M, d], M ≥ 1.

    Raises:
        ValueError: nothing to be near to.
    """
    if not len(others):
        raise ValueError("there are no features to look for the nearest in")
    found = [_exact(rows.double(), others.double()) for rows in queries.split(_ROWS)]
    if not found:
        return Nearest(queries.new_zeros(0).double(), torch.zeros(0, dtype=torch.int64))
    return Nearest(torch.cat([part.values for part in found]), torch.cat([part.indices for part in found]))


def memorisation(samples: Nearest, held_out: Nearest, copies: Nearest) -> Memorisation:
    """Compares three kinds of pictures by how near they come to the training images."""
    threshold = torch.quantile(held_out.distances, 0.05)
    return Memorisation(
        samples=samples.distances.median().item(),
        held_out=held_out.distances.median().item(),
        copies=copies.distances.median().item(),
        copied_share=(samples.distances < threshold).double().mean().item(),
    )


def _exact(rows: Tensor, others: Tensor) -> torch.return_types.min:
    return torch.cdist(rows, others, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1)
