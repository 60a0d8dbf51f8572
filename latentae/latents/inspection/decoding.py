"""From one point of the latent space to another, on the sphere between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latentae.devices import to_float64, to_float64_on_cpu
from latentae.latents.inspection.encoding import Autoencoder, decoded
from latentae.report.grids import Figure, image_grid

# Within this of 0 or π the formula divides by next to nothing.
_SMALLEST_ANGLE = 1e-4

ABOUT = (
    "Decoded points on the arc between two latents, around the latents' mean: spherical interpolation keeps "
    "them as far from it as real latents are, where a straight line passes too near. The ends are the "
    "reconstructions. Smooth changes without grey or torn pictures in between speak for the space; a "
    "denoiser does not need them. A VQ model quantizes each point first. The noises are drawn from the "
    "Gaussian fitted to the latents, position by position."
)


@dataclass(frozen=True, eq=False)
class Interpolation:
    """Ways between pairs of latents.

    Attributes:
        weights: [steps] from 0, the first, to 1, the second.
        images: [pairs, steps, C, H, W] in about [−1, 1], on the CPU.
        norms: [pairs, steps] Euclidean norms of the latents, from the centre that they turn around.
        angles: [pairs] between the two, in degrees.
    """

    weights: Tensor
    images: Tensor
    norms: Tensor
    angles: Tensor

    def figure(self, labels: list[str] | None = None) -> Figure:
        """One row a pair, with its angle; ``labels`` name the pairs."""
        labels = labels or [f"pair {number + 1}" for number in range(len(self.images))]
        named = [f"{label}\n{angle:.0f} degrees" for label, angle in zip(labels, self.angles, strict=True)]
        columns = [f"{weight:.2f}" for weight in self.weights.tolist()]
        return image_grid(
            "Spherical interpolation",
            self.images,
            rows=named,
            columns=columns,
            column_title="share of the second latent",
        )

    def numbers(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "weights": self.weights.tolist(),
            "angles_degrees": self.angles.tolist(),
            "norms": self.norms.tolist(),
        }


class OppositeEndsError(ValueError):
    """Raised for two ends in opposite directions, between which no arc is the shortest."""


def slerp(first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
    """Points [n, *shape] on the arc from one tensor to another of the same shape, in float64.

    sin((1−t)Ω)/sin Ω · a + sin(tΩ)/sin Ω · b with Ω the angle between a and b as vectors (Shoemake 1985,
    section 3.3). Between norms that differ the norm changes smoothly. Where there is no angle, because the
    two are parallel or one is zero, it is the straight line, which the formula tends to.

    Args:
        weights: [n] t, 0 gives ``first`` and 1 ``second``.

    Raises:
        ValueError: different shapes, or opposite directions, between which no arc is the shortest.
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


def angle_between(first: Tensor, second: Tensor) -> float:
    """In degrees, between two tensors as vectors; 0 where one is zero."""
    a, b = to_float64(first).flatten(), to_float64(second).flatten()
    lengths = a.norm() * b.norm()
    if not lengths > 0:
        return 0.0
    return math.degrees(math.acos(max(-1.0, min(1.0, (a @ b / lengths).item()))))


def interpolate(
    model: Autoencoder,
    first: Tensor,
    second: Tensor,
    *,
    steps: int = 7,
    centre: Tensor | None = None,
    size: tuple[int, int] | None = None,
    batch_size: int = 16,
) -> Interpolation:
    """Decodes points on the arcs between pairs of raw latents: those of images, or noise.

    Args:
        model: in eval mode.
        first, second: [B, c, h, w] the ends of each pair, such as ``model.encode(images).latents``, or
            ``torch.randn`` of that shape.
        steps: points of each arc, 2 or more, with both ends.
        centre: [c] what the arcs turn around, such as ``fit_gaussian(…).mean``; None: zero.
        size: (H, W) to crop the images to.
        batch_size: latents decoded at a time.

    Raises:
        ValueError: fewer than 2 steps, latents of different shapes, none, or in opposite directions.
    """
    if steps < 2:
        raise ValueError(f"steps is {steps}, but must be 2 or more: both ends count")
    if first.shape != second.shape or first.ndim != 4 or not len(first):
        raise ValueError(
            f"the ends are {list(first.shape)} and {list(second.shape)}, but must both be [B, c, h, w] with "
            "one pair or more"
        )
    ends = to_float64_on_cpu(first.detach()), to_float64_on_cpu(second.detach())
    middle = torch.zeros(first.shape[1]) if centre is None else centre
    middle = to_float64_on_cpu(middle.detach())[:, None, None]
    weights = torch.linspace(0, 1, steps, dtype=torch.float64)
    pairs = [(a - middle, b - middle) for a, b in zip(*ends, strict=True)]
    arcs = torch.stack([slerp(a, b, weights) for a, b in pairs])
    images = decoded(model, (arcs + middle).flatten(0, 1), size=size, batch_size=batch_size)
    return Interpolation(
        weights=weights,
        images=images.view(len(pairs), steps, *images.shape[1:]),
        norms=arcs.flatten(2).norm(dim=2),
        angles=torch.tensor([angle_between(a, b) for a, b in pairs], dtype=torch.float64),
    )


def joined(parts: Sequence[Interpolation]) -> Interpolation:
    """Several interpolations with the same weights as one."""
    return Interpolation(
        weights=parts[0].weights,
        images=torch.cat([part.images for part in parts]),
        norms=torch.cat([part.norms for part in parts]),
        angles=torch.cat([part.angles for part in parts]),
    )
