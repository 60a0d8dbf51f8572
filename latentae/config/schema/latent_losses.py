"""What is asked of the latents for a denoiser's sake; each block has a paper, and is off by default."""

from typing import Annotated, Literal

from pydantic import Field

from latentae.config.schema.base import FROM_LIST, Positive, Section, Share, Text


class EquivarianceConfig(Section):
    """In some steps decode(t(z)) is compared with t(x), t a change of scale and a turn (EQ-VAE, arXiv
    2502.09509). Takes less time than without; `reconstruction` in the log is the mean over all steps."""

    probability: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the steps whose latents are transformed; one t for all images and losses of a step."""
    min_scale: Annotated[float, Field(gt=0, le=1)] = 0.25
    """The scale is drawn evenly from here to 1; 1: none."""
    rotate: bool = True
    """Also turn by 90, 180 or 270 degrees."""
    low_resolution_probability: Share = 0.25
    """Share of the other steps whose images are made smaller before they are encoded."""


class LatentNoiseConfig(Section):
    """The decoder is given z + sigma s n, n normal, sigma = |N(0, scale^2)| drawn for each image, s the
    standard deviation of the batch's latents (noise-augmented decoding of RAE, arXiv 2510.11690)."""

    scale: Positive
    """Typical noise in units of the latents' standard deviation: 0.8 in RAE with 768 channels; latents of 4
    to 16 channels hold less that is redundant, start from 0.1."""


class AlignmentConfig(Section):
    """Projected latents are drawn to a frozen network's features and their similarities (VF loss of VA-VAE,
    arXiv 2501.01423)."""

    network: Text = "facebook/dinov2-large"
    """A vision transformer, as hub id or folder of transformers (pip install latentae[dinov2]); or vgg16,
    which is at hand offline and no match for DINOv2."""
    precision: Literal["float32", "bfloat16"] | None = None
    """Number format that the frozen network computes in; null: bfloat16 with `mixed_precision` bf16, else
    float32."""
    weight: Positive = 0.1
    """Factor of this term in the sum, times the adaptive weight where that is on."""
    adaptive: bool = True
    """Multiply by |gradient of reconstruction and perceptual loss| / (|gradient of this term| + 1e-4), taken
    at the encoder's last convolution, for another backward pass through the decoder's activations."""
    cosine_margin: Share = 0.5
    """What of 1 - cos(latent, feature) costs nothing."""
    similarity_margin: Share = 0.25
    """Difference between the cosines of two latents and of their two features that costs nothing."""


class SpectralConfig(Section):
    """A further term: latents made smaller must decode to images made smaller (scale equivariance, arXiv
    2502.14831). The decoder runs again on a quarter of the pixels or fewer."""

    weight: Positive = 0.25
    """Factor of the reconstruction and perceptual loss of the smaller images."""
    factors: Annotated[tuple[Annotated[int, Field(ge=2)], ...], FROM_LIST, Field(min_length=1)] = (2, 4)
    """By how much sides are divided; each step takes one of these at random."""
