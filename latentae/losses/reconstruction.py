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


RECONSTRUCTION_LOSSES: dict[str, ReconstructionLoss] = {"l1": l1, "l2": l2}
