"""What a reconstruction is trained for: the weighted sum of its losses."""

from __future__ import annotations

from torch import Tensor, nn

from latentae.losses.likelihood import Likelihood
from latentae.losses.reconstruction import ReconstructionLoss


class ReconstructionObjective(nn.Module):
    """Weighted reconstruction loss plus weighted perceptual loss, both means per image.

    Parameters that take a gradient (a likelihood's scale) are learned with the autoencoder.

    Args:
        reconstruction: maps two [B, C, H, W] to [B]; a ``Likelihood`` does it in nats per value.
        reconstruction_weight: its weight.
        perceptual: a module that does the same, such as ``LPIPS``; None leaves the term out.
        perceptual_weight: its weight.
        scale_perceptual: whether a likelihood takes the weighted perceptual loss for a part of its distance
            d, so that its precision multiplies both. In latent diffusion it does: (|x − x̂| + LPIPS)/e^s + s.
            The learned scale then answers to their sum. Without, the perceptual weight stays what it is while
            the scale falls.

    Raises:
        ValueError: ``scale_perceptual`` where the reconstruction loss is no likelihood or there is no
            perceptual loss.
    """

    def __init__(
        self,
        reconstruction: ReconstructionLoss,
        *,
        reconstruction_weight: float = 1.0,
        perceptual: nn.Module | None = None,
        perceptual_weight: float = 1.0,
        scale_perceptual: bool = False,
    ) -> None:
        super().__init__()
        if scale_perceptual and (perceptual is None or not isinstance(reconstruction, Likelihood)):
            raise ValueError(
                "scale_perceptual is true, which needs a likelihood as reconstruction and a perceptual loss: "
                "give both, or leave it false"
            )
        self.reconstruction = reconstruction
        self.reconstruction_weight = reconstruction_weight
        self.perceptual = perceptual
        self.perceptual_weight = perceptual_weight
        self.scale_perceptual = scale_perceptual

    def forward(self, reconstruction: Tensor, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, a scalar with a gradient, and its unweighted terms by name, scalars without one.

        Returns:
            ``reconstruction`` and ``perceptual``; of a likelihood also its distance (``squared_error`` or
            ``absolute_error``), its ``log_variance`` or ``log_scale``, and, where the perceptual loss is
            scaled by it, ``perceptual_weight``, what it was multiplied by.
        """
        pixels, terms = self._pixels(reconstruction, images)
        loss = self.reconstruction_weight * pixels
        if self.perceptual is not None:
            perceptual = self.perceptual(reconstruction, images).mean()
            terms["perceptual"] = perceptual.detach()
            if self.scale_perceptual:
                assert isinstance(self.reconstruction, Likelihood)
                weight = self.reconstruction_weight * self.perceptual_weight * self.reconstruction.precision()
                terms["perceptual_weight"] = weight.detach()
                loss = loss + weight * perceptual
            else:
                loss = loss + self.perceptual_weight * perceptual
        return loss, terms

    def _pixels(self, reconstruction: Tensor, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss = self.reconstruction
        if not isinstance(loss, Likelihood):
            value = loss(reconstruction, images).mean()
            return value, {"reconstruction": value.detach()}
        distance = loss.distance(reconstruction, images).mean()
        value = loss.nll(distance)
        return value, {
            "reconstruction": value.detach(),
            loss.distance_name: distance.detach(),
            loss.scale_name: loss.log_dispersion.detach().clone(),
        }
