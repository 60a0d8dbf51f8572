"""The losses of the autoencoder. Their weighted sum is what it is trained on; a null term is left out."""

from typing import Literal

from latentae.config.schema.adversarial import AdversarialConfig
from latentae.config.schema.base import PositiveOrZero, Section
from latentae.config.schema.kl import KLConfig
from latentae.config.schema.reconstruction import ReconstructionConfig


class PerceptualConfig(Section):
    """Distance between the features of a pretrained network (LPIPS, arXiv 1801.03924)."""

    type: Literal["lpips"]
    trunk: Literal["alex", "vgg"] = "vgg"
    """Pretrained network: vgg as in taming-transformers, alex is smaller and faster."""
    weight: PositiveOrZero = 1.0
    """Factor of this term in the sum."""


class LossConfig(Section):
    """The terms the autoencoder is trained on."""

    reconstruction: ReconstructionConfig
    """Pixel loss."""
    perceptual: PerceptualConfig | None = None
    """Perceptual loss; null: none."""
    kl: KLConfig | None = None
    """Divergence of a KLVAE's posterior; null: none, and the posterior's mode as latents (a plain
    autoencoder)."""
    adversarial: AdversarialConfig | None = None
    """Adversarial loss; null: none. A VQVAE must have none, a VQGAN must have one."""
