"""Gradient estimators of quantizers, whose own derivative is zero almost everywhere."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# Shorter lengths are replaced by this, so that zero vectors have finite directions and ratios of lengths.
_SHORTEST = 1e-6


def straight_through(latents: Tensor, codes: Tensor) -> Tensor:
    """Returns the codes, with the gradient of the latents (Bengio et al. 2013, arXiv 1308.3432).

    Args:
        latents, codes: [N, d].
    """
    # In this order the difference is exactly zero, and the value exactly the code; NaN stays NaN.
    return codes.detach() + (latents - latents.detach())


def rotation(latents: Tensor, codes: Tensor) -> Tensor:
    """Returns the codes, with the gradient of λ R z: rotation trick (Fifty et al. 2024, arXiv 2410.06424).

    R rotates the direction of a latent z to that of its code q, in the plane that both span, and
    λ = ‖q‖ / ‖z‖. Both are held constant. By equation 4 of the paper
    R z = z − 2 r (rᵀz) + 2 q̂ (ẑᵀz) with r the unit vector along ẑ + q̂.

    Args:
        latents, codes: [N, d].
    """
    with torch.no_grad():
        source = F.normalize(latents, dim=1, eps=_SHORTEST)
        target = F.normalize(codes, dim=1, eps=_SHORTEST)
        bisector = F.normalize(source + target, dim=1, eps=_SHORTEST)
        length = latents.norm(dim=1, keepdim=True).clamp(min=_SHORTEST)
        ratio = codes.norm(dim=1, keepdim=True) / length
    along_bisector = (latents * bisector).sum(dim=1, keepdim=True)
    along_source = (latents * source).sum(dim=1, keepdim=True)
    rotated = ratio * (latents - 2 * along_bisector * bisector + 2 * along_source * target)
    return straight_through(rotated, codes)


GRADIENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "straight_through": straight_through,
    "rotation": rotation,
}


def check_gradient(name: str) -> None:
    """Raises ValueError for a gradient that is not in ``GRADIENTS``."""
    if name not in GRADIENTS:
        raise ValueError(f"gradient is {name!r}, but must be one of {', '.join(GRADIENTS)}")
