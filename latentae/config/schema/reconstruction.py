"""The reconstruction losses. A new one is a section here and its name in the union at its end."""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from latentae.config.schema.base import Positive, PositiveOrZero, Section

_LogScale = Annotated[float, Field(ge=-30, le=20)]


class _Reconstruction(Section):
    """What all reconstruction losses share. Images and reconstructions are in [-1, 1]."""

    type: str
    weight: PositiveOrZero = 1.0
    """Factor of this term in the sum."""


class L1Config(_Reconstruction):
    """Mean absolute error."""

    type: Literal["l1"]


class L2Config(_Reconstruction):
    """Mean squared error."""

    type: Literal["l2"]


class CharbonnierConfig(_Reconstruction):
    """Mean of sqrt(error^2 + epsilon^2) (arXiv 1710.01992)."""

    type: Literal["charbonnier"]
    epsilon: Positive = 1e-3
    """Width of the rounded corner of the absolute error; images are in [-1, 1]."""


class LikelihoodConfig(_Reconstruction):
    """What the likelihoods share. With one the log has the ELBO, and bits per dimension of 8-bit images."""

    learned: bool = True
    """Whether the variance (scale) is trained with the autoencoder (arXiv 2006.13202), without weight decay;
    false: it stays what it is."""
    learning_rate_scale: Positive = 100.0
    """Learning rate of the logarithm, where it is learned, as a multiple of the autoencoder's: it has some
    four units to go, and Adam moves it by at most about its rate a step."""
    scale_perceptual: bool = False
    """Let the variance (scale) divide the perceptual term, too, as in latent diffusion: (error + weight x
    perceptual) / scale. A learned one then settles at their sum."""


class GaussianConfig(LikelihoodConfig):
    """-log N(x; reconstruction, variance) per value, in nats, constants included."""

    type: Literal["gaussian"]
    log_variance: _LogScale = 0.0
    """Logarithm of the variance, one for all values, at the start; its optimum is log of the mean squared
    error."""


class LaplaceConfig(LikelihoodConfig):
    """-log Laplace(x; reconstruction, scale) per value, in nats, constants included."""

    type: Literal["laplace"]
    log_scale: _LogScale = 0.0
    """Logarithm of the scale, one for all values, at the start (latent diffusion's "logvar", 0 there); its
    optimum is log of the mean absolute error."""


ReconstructionConfig: TypeAlias = Annotated[
    L1Config | L2Config | CharbonnierConfig | GaussianConfig | LaplaceConfig, Field(discriminator="type")
]
