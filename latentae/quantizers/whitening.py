"""A start for quantizers whose codes lie where they lie: the latents are moved to them instead."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from latentae.devices import to_float64_on_cpu

# Directions of less than this share of the largest variance are rounding, and are left as they are.
_LEAST_VARIANCE = 1e-8


class LatentMap(NamedTuple):
    """z' = A z + b, for what comes before a quantizer to take in.

    Attributes:
        matrix: A, [d, d].
        shift: b, [d].
    """

    matrix: Tensor
    shift: Tensor

    def __call__(self, flat: Tensor) -> Tensor:
        """A z + b of latents [N, d]."""
        return flat @ self.matrix.to(flat).T + self.shift.to(flat)


@torch.no_grad()
def whitening(flat: Tensor) -> LatentMap:
    """What gives latents [N, d] mean 0 and covariance I, turning them as little as can be.

    A = C^(−1/2) and b = −A μ, in float64 on the CPU, with μ and C the mean and covariance of the latents.
    Directions in which there is no variance stay as they are.
    """
    values = to_float64_on_cpu(flat.detach())
    mean = values.mean(dim=0)
    centred = values - mean
    variances, directions = torch.linalg.eigh(centred.T @ centred / len(values))
    varied = variances > _LEAST_VARIANCE * variances[-1].clamp(min=torch.finfo(torch.float64).tiny)
    factors = torch.where(varied, variances.clamp(min=torch.finfo(torch.float64).tiny).rsqrt(), 1.0)
    matrix = directions * factors @ directions.T
    return LatentMap(matrix, -matrix @ mean)
