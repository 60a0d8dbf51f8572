"""Points between two latents, or two draws of noise: on the arc between them, or on the straight line."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from latentae.devices import to_float64

# Within this of 0 or π the formula divides by next to nothing.
_SMALLEST_ANGLE = 1e-4


class OppositeEndsError(ValueError):
    """The two ends point in opposite directions, so that no arc between them is the shortest."""


def slerp(first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
    """Returns points [n, *shape] on the arc from one tensor to another of the same shape, in float64.

    sin((1−t)Ω)/sin Ω · a + sin(tΩ)/sin Ω · b with Ω the angle between a and b as vectors (Shoemake 1985,
    section 3.3). Where the norms differ, the norm changes smoothly. Where there is no angle, because the two
    are parallel or one is zero, the points lie on the straight line, which is the formula's limit.

    Args:
        weights: [n] t; 0 gives ``first`` and 1 ``second``.

    Raises:
        ValueError: different shapes.
        OppositeEndsError: opposite directions.
    """
    if first.shape != second.shape:
        raise ValueError(
            f"one end is {list(first.shape)}, the other {list(second.shape)}, but they must be alike"
        )
    a, b = to_float64(first), to_float64(second)
    t = weights.to(a).view(-1, *[1] * a.ndim)
    omega = math.radians(angle_between(a, b))
    if math.pi - omega < _SMALLEST_ANGLE:
        raise OppositeEndsError(
            "the two ends point in opposite directions, so that no arc between them is shortest"
        )
    if omega < _SMALLEST_ANGLE:
        return (1 - t) * a + t * b
    return (((1 - t) * omega).sin() * a + (t * omega).sin() * b) / math.sin(omega)


def slerp_or_lerp(first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
    """Does ``slerp``, but between ends in opposite directions the points lie on the straight line."""
    try:
        return slerp(first, second, weights)
    except OppositeEndsError:
        a, b = to_float64(first), to_float64(second)
        return torch.lerp(a, b, weights.to(a).view(-1, *[1] * a.ndim))


def angle_between(first: Tensor, second: Tensor) -> float:
    """Returns the angle between two tensors as vectors, in degrees; 0 where one is zero."""
    a, b = to_float64(first).flatten(), to_float64(second).flatten()
    lengths = a.norm() * b.norm()
    if not lengths > 0:
        return 0.0
    return math.degrees(math.acos(max(-1.0, min(1.0, (a @ b / lengths).item()))))
