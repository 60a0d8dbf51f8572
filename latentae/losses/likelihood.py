"""Likelihoods of an image given its reconstruction, with one scale for all values, learned or fixed.

Both are normalised, so that with a KL term of weight 1 they make the ELBO. The best scale is known in closed
form, the mean distance, and sets the balance to the other terms (Rybkin et al. 2021, arXiv 2006.13202).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from latentae.losses.reconstruction import l1, l2


class Likelihood(nn.Module, ABC):
    """−log p(x|x̂) per value, in nats, as an affine function of a distance between x and x̂.

    Args:
        log_dispersion: logarithm of what the distance is divided by, at the start or for good.
        learned: whether it is trained.
    """

    scale_name: ClassVar[str]
    distance_name: ClassVar[str]

    def __init__(self, log_dispersion: float, *, learned: bool) -> None:
        super().__init__()
        self.log_dispersion = nn.Parameter(torch.tensor(float(log_dispersion)), requires_grad=learned)

    @abstractmethod
    def distance(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        """Mean per value of each image: [B] from two [B, C, H, W]."""

    @abstractmethod
    def precision(self) -> Tensor:
        """What the distance is multiplied by, a positive scalar."""

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
