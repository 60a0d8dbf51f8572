"""Reconstruction losses, likelihoods, and the objective that sums them with a perceptual loss.

A likelihood has one scale for all values, learned or fixed, and is normalised: with a KL term of weight 1 it
makes the ELBO. The best scale is known in closed form, the mean distance. It sets the balance to the other
terms (Rybkin et al. 2021, arXiv 2006.13202).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from latentae.losses.compositing import composites, opacity, weigh_by_alpha

ReconstructionLoss = Callable[[Tensor, Tensor], Tensor]


def l1(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Returns the mean absolute difference of each image: [B] from two [B, C, H, W]."""
    return (reconstruction - images).abs().mean(dim=(1, 2, 3))


def l2(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Returns the mean squared difference of each image: [B] from two [B, C, H, W]."""
    return (reconstruction - images).square().mean(dim=(1, 2, 3))


def charbonnier(reconstruction: Tensor, images: Tensor, epsilon: float = 1e-3) -> Tensor:
    """Returns the mean of √((x − x̂)² + ε²) of each image: [B] from two [B, C, H, W].

    It is the absolute difference, smoothed over a width of ε (Charbonnier et al. 1994; as a loss on images
    with ε = 1e-3: LapSRN, arXiv 1710.01992). A perfect reconstruction has a loss of ε.
    """
    return ((reconstruction - images).square() + epsilon**2).sqrt().mean(dim=(1, 2, 3))


RECONSTRUCTION_LOSSES: dict[str, Callable[..., Tensor]] = {"l1": l1, "l2": l2, "charbonnier": charbonnier}


class Likelihood(nn.Module, ABC):
    """−log p(x|x̂) per value, in nats, as an affine function of a distance between x and x̂.

    Args:
        log_dispersion: logarithm of what the distance is divided by, at the start of training.
        learned: whether it is trained; otherwise it is constant.
    """

    scale_name: ClassVar[str]
    distance_name: ClassVar[str]

    def __init__(self, log_dispersion: float, *, learned: bool) -> None:
        super().__init__()
        self.log_dispersion = nn.Parameter(torch.tensor(float(log_dispersion)), requires_grad=learned)

    @abstractmethod
    def distance(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        """Returns the mean per value of each image: [B] from two [B, C, H, W]."""

    @abstractmethod
    def precision(self) -> Tensor:
        """Returns the positive scalar that multiplies the distance."""

    @abstractmethod
    def nll(self, distance: Tensor) -> Tensor:
        """−log p(x|x̂) in nats per value, of a mean distance of any shape."""

    def forward(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        """−log p(x|x̂) in nats per value, the mean of each image: [B] from two [B, C, H, W]."""
        return self.nll(self.distance(reconstruction, images))


class GaussianLikelihood(Likelihood):
    """x ~ N(x̂, σ²): −log p = ½ ((x − x̂)²/σ² + s + log 2π) with s = log σ², at best log E (x − x̂)²."""

    scale_name = "log_variance"
    distance_name = "squared_error"

    def __init__(self, log_variance: float = 0.0, *, learned: bool = True) -> None:
        super().__init__(log_variance, learned=learned)

    def distance(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        return l2(reconstruction, images)

    def precision(self) -> Tensor:
        return 0.5 * (-self.log_dispersion).exp()

    def nll(self, distance: Tensor) -> Tensor:
        return self.precision() * distance + 0.5 * (self.log_dispersion + math.log(2 * math.pi))


class LaplaceLikelihood(Likelihood):
    """x ~ Laplace(x̂, b): −log p = |x − x̂|/b + s + log 2 with s = log b, at best log E |x − x̂|.

    Without the constant it is the loss of latent diffusion, which calls s a log-variance.
    """

    scale_name = "log_scale"
    distance_name = "absolute_error"

    def __init__(self, log_scale: float = 0.0, *, learned: bool = True) -> None:
        super().__init__(log_scale, learned=learned)

    def distance(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        return l1(reconstruction, images)

    def precision(self) -> Tensor:
        return (-self.log_dispersion).exp()

    def nll(self, distance: Tensor) -> Tensor:
        return self.precision() * distance + self.log_dispersion + math.log(2)


LIKELIHOODS: dict[str, type[Likelihood]] = {"gaussian": GaussianLikelihood, "laplace": LaplaceLikelihood}


class ReconstructionObjective(nn.Module):
    """Weighted reconstruction loss plus weighted perceptual loss, both means per image.

    Parameters that take a gradient (a likelihood's scale) are learned with the autoencoder.

    Args:
        reconstruction: maps two [B, C, H, W] to [B]; a ``Likelihood`` does it in nats per value.
        reconstruction_weight: its weight.
        perceptual: a module that does the same, such as ``LPIPS``; None leaves the term out.
        perceptual_weight: its weight.
        scale_perceptual: add the weighted perceptual loss to the likelihood's distance d, so that its
            precision multiplies both, as in latent diffusion: (|x − x̂| + LPIPS)/e^s + s. The learned scale
            then depends on their sum. Otherwise the perceptual weight is constant while the scale falls.

    Raises:
        ValueError: ``scale_perceptual`` without a likelihood or without a perceptual loss.
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

    def forward(
        self, reconstruction: Tensor, images: Tensor, backgrounds: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss, a scalar with a gradient, and its unweighted terms by name, without gradients.

        Args:
            reconstruction, images: [B, C, H, W] in [-1, 1].
            backgrounds: a colour for each image, [B, 3] in [-1, 1], if the four channels are RGBA. Pixels'
                colours are then weighted by the images' alpha, and the perceptual loss is the mean over the
                composites over this colour, black and white. None: channels are channels.

        Returns:
            ``reconstruction`` and ``perceptual``; of a likelihood also its distance (``squared_error`` or
            ``absolute_error``), its ``log_variance`` or ``log_scale``, and, where the perceptual loss is
            scaled by it, ``perceptual_weight``, what it was multiplied by; with backgrounds ``alpha_error``,
            the mean absolute error of alpha in [0, 1].
        """
        compared, seen = (reconstruction, images), (reconstruction, images)
        if backgrounds is not None:
            compared = weigh_by_alpha(reconstruction, images)
            seen = (composites(reconstruction, backgrounds), composites(images, backgrounds))
        pixels, terms = self._pixels(*compared)
        if backgrounds is not None:
            terms["alpha_error"] = l1(opacity(reconstruction.detach()), opacity(images)).mean()
        loss = self.reconstruction_weight * pixels
        if self.perceptual is not None:
            perceptual = self.perceptual(*seen).mean()
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
