"""The losses of the autoencoder. Their weighted sum is what it is trained on; a null term is left out."""

from typing import Literal

from latentae.config.schema.base import CountOrZero, Positive, PositiveOrZero, Section


class ReconstructionConfig(Section):
    """Pixel loss between the images, in [-1, 1], and their reconstruction."""

    type: Literal["l1", "l2"]
    """Mean absolute or mean squared error."""
    weight: PositiveOrZero = 1.0
    """Factor of this term in the sum."""


class PerceptualConfig(Section):
    """Distance between the features of a pretrained network (LPIPS, arXiv 1801.03924)."""

    type: Literal["lpips"]
    trunk: Literal["alex", "vgg"] = "vgg"
    """Pretrained network: vgg as in taming-transformers, alex is smaller and faster."""
    weight: PositiveOrZero = 1.0
    """Factor of this term in the sum."""


class KLConfig(Section):
    """Divergence KL(q(z|x) || N(0, I)) of a KLVAE's posterior (arXiv 1312.6114)."""

    weight: PositiveOrZero = 1e-6
    """Factor of the divergence, in nats summed over the latents of an image, against the reconstruction loss
    summed over its values: latent diffusion's convention, in which Stable Diffusion has 1e-6. The other terms
    are means per value, so the sum over latents is divided by the number of values of the image."""


class AdversarialConfig(Section):
    """The loss that a discriminator gives the reconstruction (VQGAN, arXiv 2012.09841)."""

    type: Literal["hinge"]
    """hinge: the discriminator learns (E relu(1 - D(real)) + E relu(1 + D(fake))) / 2, the autoencoder
    -E D(fake), where fake is its reconstruction."""
    weight: PositiveOrZero = 0.8
    """Factor of this term in the sum, times the adaptive weight where that is on."""
    adaptive: bool = True
    """Multiply by |gradient of the other terms| / (|gradient of this one| + 1e-4), taken at the decoder's
    last convolution (VQGAN, eq. 7)."""
    max_adaptive_weight: Positive = 1e4
    """Upper limit of the adaptive weight."""
    start_step: CountOrZero
    """Optimizer step from which this term counts: late enough that reconstructions are recognisable."""
    discriminator_warmup_steps: CountOrZero = 0
    """Steps just before `start_step` in which the discriminator already learns, and it alone."""


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
