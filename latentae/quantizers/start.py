"""Starts quantizers from data: k-means places codes, or whitening moves latents to fixed codes."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from latentae.devices import to_float64, to_float64_on_cpu
from latentae.quantizers.lookup import nearest_code

_ROUNDS = 8
# The number of seeds drawn at a time is the number there are divided by this. Each draw then knows of almost
# all other seeds, and thousands of seeds take hundreds of draws (as in k-means||, Bahmani et al. 2012).
_SEEDS_PER_DRAW = 64
_NOISE = 1e-3


@torch.no_grad()
def k_means(points: Tensor, count: int, generator: torch.Generator, *, spherical: bool = False) -> Tensor:
    """Returns centres [count, d] of points [N, d], seeded by k-means++ (Arthur and Vassilvitskii 2007).

    If there are fewer distinct points than centres, the other centres are repeated points plus noise of a
    thousandth of their standard deviation.

    Args:
        points: finite, N ≥ 1; of unit length if ``spherical``.
        count: the number of centres. It may exceed N.
        generator: on the CPU; the same state gives the same centres.
        spherical: keep the centres at unit length.
    """
    centres = _seeds(points, count, generator)
    for _ in range(_ROUNDS):
        centres = F.normalize(centres, dim=1) if spherical else centres
        nearest = _nearest(points, centres)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        counts = points.new_zeros(count).index_add_(0, nearest, points.new_ones(len(points)))[:, None]
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
    return F.normalize(centres, dim=1) if spherical else centres


def _seeds(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draws points [count, d], each in proportion to its squared distance from those drawn before."""
    most = min(count, len(points))
    picks = torch.randint(len(points), (1,), generator=generator).to(points.device)
    squares = (points - points[picks]).square().sum(dim=1)
    repeated = torch.zeros(1, dtype=torch.bool, device=points.device)
    while len(picks) < most:
        number = min(max(1, len(picks) // _SEEDS_PER_DRAW), most - len(picks))
        # The smallest of exponential variables with rates in proportion to the squares: draws without
        # replacement.
        clocks = -torch.log1p(-torch.rand(len(points), generator=generator)).to(points.device) / squares
        new = clocks.topk(number, largest=False).indices
        repeated = torch.cat([repeated, squares[new] == 0])
        picks = torch.cat([picks, new])
        nearest = points[new][_nearest(points, points[new])]
        squares = torch.minimum(squares, (points - nearest).square().sum(dim=1))
    missing = count - most
    again = torch.randint(len(points), (missing,), generator=generator).to(points.device)
    repeated = torch.cat([repeated, torch.ones(missing, dtype=torch.bool, device=points.device)])
    seeds = points[torch.cat([picks, again])]
    noise = torch.randn(seeds.shape, generator=generator).to(points) * _spread(points)
    return seeds + _NOISE * repeated[:, None] * noise


def _nearest(points: Tensor, centres: Tensor) -> Tensor:
    """Returns the index of each point's nearest centre. In float64, since repeated centres are very close."""
    return nearest_code(to_float64(points), to_float64(centres)).to(points.device)


def _spread(points: Tensor) -> Tensor:
    """Returns the standard deviation [d]; for points that are all equal, their magnitude."""
    deviation = points.std(dim=0, correction=0)
    return torch.where(deviation > 0, deviation, points.abs().mean(dim=0))


# Directions with less than this share of the largest variance are rounding errors, and stay as they are.
_LEAST_VARIANCE = 1e-8


class LatentMap(NamedTuple):
    """z' = A z + b, a change of latents that the layer before a quantizer takes in.

    Attributes:
        matrix: A, [d, d].
        shift: b, [d].
    """

    matrix: Tensor
    shift: Tensor

    def __call__(self, flat: Tensor) -> Tensor:
        """Returns A z + b for latents [N, d]."""
        return flat @ self.matrix.to(flat).T + self.shift.to(flat)


@torch.no_grad()
def whitening(flat: Tensor) -> LatentMap:
    """Returns the map that gives latents [N, d] mean 0 and covariance I with the least change (ZCA).

    A = C^(−1/2) and b = −A μ, in float64 on the CPU, where μ and C are the mean and covariance of the
    latents. Directions without variance stay as they are.
    """
    values = to_float64_on_cpu(flat.detach())
    mean = values.mean(dim=0)
    centred = values - mean
    variances, directions = torch.linalg.eigh(centred.T @ centred / len(values))
    varied = variances > _LEAST_VARIANCE * variances[-1].clamp(min=torch.finfo(torch.float64).tiny)
    factors = torch.where(varied, variances.clamp(min=torch.finfo(torch.float64).tiny).rsqrt(), 1.0)
    matrix = directions * factors @ directions.T
    return LatentMap(matrix, -matrix @ mean)
