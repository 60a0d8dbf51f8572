"""The losses of the autoencoder. Their weighted sum is what it is trained on; a null term is left out."""

from typing import Literal

from latentae.config.schema.adversarial import AdversarialConfig
from latentae.config.schema.base import PositiveOrZero, Section
from latentae.config.schema.kl import KLConfig
from latentae.config.schema.latent_losses import (
    AlignmentConfig,
    EquivarianceConfig,
    LatentNoiseConfig,
    SpectralConfig,
)
from latentae.config.schema.reconstruction import ReconstructionConfig


class PerceptualConfig(Section):
    """Distance between the features of a pretrained network (LPIPS, arXiv 1801.03924)."""

    type: Literal["lpips"]
    trunk: Literal["alex", "vgg"] = "vgg"
    """Pretrained network: vgg as in taming-transformers, alex is smaller and faster."""
    weight: PositiveOrZero = 1.0
    """Factor of this term in the sum."""
    precision: Literal["float32", "bfloat16"] | None = None
    """What the pretrained network computes in; null: bfloat16 with `mixed_precision` bf16, else float32.
    bfloat16 is several times as fast on processors with matrix units, with some rounding in the gradient;
    what is measured, in validation and evaluation, stays float32."""


class LossConfig(Section):
    """The terms the autoencoder is trained on."""

    reconstruction: ReconstructionConfig
    """Pixel loss."""
    perceptual: PerceptualConfig | None = None
    """Perceptual loss; null: none."""
    kl: KLConfig | None = None
    """Divergence of a KLVAE's posterior; null: none, and the posterior's mode as latents (a plain
    autoencoder)."""
    equivariance: EquivarianceConfig | None = None
    """Latents that scale and turn as the images do (EQ-VAE); null: not asked for."""
    latent_noise: LatentNoiseConfig | None = None
    """Noise on the latents that the decoder learns to forgive (RAE); null: none."""
    alignment: AlignmentConfig | None = None
    """Latents that resemble a frozen network's features (VA-VAE); null: not asked for."""
    spectral: SpectralConfig | None = None
    """Low-passed latents that decode to low-passed images; null: not asked for."""
    adversarial: AdversarialConfig | None = None
    """Adversarial loss; null: none. A VQVAE must have none, a VQGAN must have one."""
