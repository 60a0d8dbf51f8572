"""How a discriminator teaches the autoencoder: the adversarial term of the loss."""

from typing import Literal

from latentae.config.schema.base import CountOrZero, Positive, PositiveOrZero, Section, ShareBelowOne


class LeCAMConfig(Section):
    """A term in the discriminator's loss that holds its logits for images and reconstructions together
    (LeCAM, arXiv 2104.03310)."""

    weight: Positive
    """Factor of E relu(D(real) - average of D(fake))^2 + E relu(average of D(real) - D(fake))^2 in the
    discriminator's loss (0.001 in TiTok)."""
    decay: ShareBelowOne = 0.999
    """Decay per optimizer step of the averages of the logits."""


class AdversarialConfig(Section):
    """The loss that a discriminator gives the reconstruction (VQGAN, arXiv 2012.09841)."""

    type: Literal["hinge", "non_saturating", "least_squares"]
    """What the discriminator D learns, and the autoencoder, whose reconstruction is fake. hinge:
    (E relu(1 - D(real)) + E relu(1 + D(fake))) / 2, and -E D(fake). non_saturating:
    (E softplus(-D(real)) + E softplus(D(fake))) / 2, and E softplus(-D(fake)). least_squares:
    (E (D(real) - 1)^2 + E D(fake)^2) / 2, and E (D(fake) - 1)^2 / 2."""
    weight: PositiveOrZero = 0.8
    """Factor of this term in the sum, times the adaptive weight where that is on."""
    adaptive: bool = True
    """Multiply by |gradient of the other terms| / (|gradient of this one| + 1e-4), taken at the decoder's
    last convolution (VQGAN, eq. 7)."""
    min_adaptive_weight: PositiveOrZero = 0.0
    """Lower limit of the adaptive weight."""
    max_adaptive_weight: Positive = 1e4
    """Upper limit of the adaptive weight."""
    start_step: CountOrZero
    """Optimizer step from which this term counts: late enough that reconstructions are recognisable."""
    ramp_steps: CountOrZero = 0
    """Optimizer steps from `start_step` on over which the weight rises linearly; 0: all of it at once."""
    discriminator_warmup_steps: CountOrZero = 0
    """Steps just before `start_step` in which the discriminator already learns, and it alone."""
    lecam: LeCAMConfig | None = None
    """Keeps a discriminator that wins from driving the logits apart; null: does not."""
