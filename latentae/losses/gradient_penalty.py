"""R1: the discriminator's slope at real images is kept small (Mescheder et al. 2018, arXiv 1801.04406)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def squared_slope(
    logits: Tensor, images: Tensor, loss_scale: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """E ‖∇ₓ Σₚ Dₚ(x)‖² / P, with P the logits of an image: a scalar that can be differentiated again.

    With one logit per image this is E ‖∇ₓ D(x)‖². A patch discriminator is one of patches: where these do not
    overlap it is the mean over patches of each one's own squared slope, so that a weight means the same at
    every image size.

    Args:
        logits: [B, ...], computed from ``images`` by a network that can be differentiated twice.
        images: [B, C, H, W], with ``requires_grad``.
        loss_scale: multiplies a scalar by the loss scale of float16 training, as ``GradScaler.scale`` does;
            None without one. The gradient is then that of the mean logit times the scale, as in any loss, and
            divided by both afterwards. Where it overflows, a lower scale helps.

    Returns:
        the mean over images, in float32 at least, whatever autocast made of the logits.
    """
    if loss_scale is None:
        (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
        gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    else:
        factor = loss_scale(torch.ones((), device=logits.device)) / logits.numel()
        (gradient,) = torch.autograd.grad(logits.to(factor.dtype).sum() * factor, images, create_graph=True)
        gradient = gradient.to(factor.dtype) / factor
    return gradient.square().sum() / logits.numel()


@dataclass(frozen=True)
class R1:
    """γ/2 times the squared slope, in every k-th update only and then k times as strong.

    The average over updates is that of the whole penalty at a fraction of its cost (StyleGAN2, Karras et al.
    2020, arXiv 1912.04958, section 3.1). The paper's changed Adam parameters do not apply: they make up for
    the updates that its separate penalty steps add, and here the penalty is part of the discriminator's loss.

    Attributes:
        weight: γ.
        every: k.
    """

    weight: float
    every: int = 16

    def due(self, update: int) -> bool:
        """Whether the update with this number, from 0, has the penalty."""
        return update % self.every == 0

    @property
    def factor(self) -> float:
        """What multiplies the squared slope in an update that has it."""
        return 0.5 * self.weight * self.every
