"""Pixel losses between a reconstruction and its image."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

ReconstructionLoss = Callable[[Tensor, Tensor], Tensor]


def l1(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Mean absolute difference of each image: [B] from two [B, C, H, W]."""
    return (reconstruction - images).abs().mean(dim=(1, 2, 3))


def l2(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Mean squared difference of each image: [B] from two [B, C, H, W]."""
    return (reconstruction - images).square().mean(dim=(1, 2, 3))


def charbonnier(reconstruction: Tensor, images: Tensor, epsilon: float = 1e-3) -> Tensor:
    """Mean of √((x − x̂)² + ε²) of each image: [B] from two [B, C, H, W].

    The absolute difference with its corner rounded off over a width of ε (Charbonnier et al. 1994; as a loss
    on images with ε = 1e-3: LapSRN, arXiv 1710.01992). A perfect reconstruction has ε.
    """
    return ((reconstruction - images).square() + epsilon**2).sqrt().mean(dim=(1, 2, 3))


RECONSTRUCTION_LOSSES: dict[str, Callable[..., Tensor]] = {"l1": l1, "l2": l2, "charbonnier": charbonnier}
