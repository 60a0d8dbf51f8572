"""What a reconstruction is trained for: the weighted sum of its losses."""

from __future__ import annotations

from torch import Tensor, nn

from latentae.losses.reconstruction import ReconstructionLoss


class ReconstructionObjective(nn.Module):
    """Weighted reconstruction loss plus weighted perceptual loss, both means per image.

    Args:
        reconstruction: maps two [B, C, H, W] to [B].
        reconstruction_weight: its weight.
        perceptual: a module that does the same, such as ``LPIPS``; None leaves the term out.
        perceptual_weight: its weight.
    """

    def __init__(
        self,
        reconstruction: ReconstructionLoss,
        *,
        reconstruction_weight: float = 1.0,
        perceptual: nn.Module | None = None,
        perceptual_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.reconstruction = reconstruction
        self.reconstruction_weight = reconstruction_weight
        self.perceptual = perceptual
        self.perceptual_weight = perceptual_weight

    def forward(self, reconstruction: Tensor, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, a scalar with a gradient, and its unweighted terms by name, scalars without one."""
        pixels = self.reconstruction(reconstruction, images).mean()
        loss = self.reconstruction_weight * pixels
        terms = {"reconstruction": pixels.detach()}
        if self.perceptual is not None:
            perceptual = self.perceptual(reconstruction, images).mean()
            loss = loss + self.perceptual_weight * perceptual
            terms["perceptual"] = perceptual.detach()
        return loss, terms
