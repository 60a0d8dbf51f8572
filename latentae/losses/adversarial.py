"""Adversarial losses, and when and how strongly they enter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


def hinge_generator(fake: Tensor) -> Tensor:
    """−E D(x̂), a scalar from the logits of reconstructions."""
    return -fake.mean()


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """½ (E relu(1 − D(x)) + E relu(1 + D(x̂))), a scalar from two sets of logits (Esser et al. 2021)."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def non_saturating_generator(fake: Tensor) -> Tensor:
    """E softplus(−D(x̂)) = −E log σ(D(x̂)), a scalar (Goodfellow et al. 2014, arXiv 1406.2661, section 3)."""
    return F.softplus(-fake).mean()


def non_saturating_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """½ (E softplus(−D(x)) + E softplus(D(x̂))), a scalar: the cross-entropy, halved as the hinge is."""
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def least_squares_generator(fake: Tensor) -> Tensor:
    """½ E (D(x̂) − 1)², a scalar (Mao et al. 2017, arXiv 1611.04076, equation 9)."""
    return 0.5 * (fake - 1).square().mean()


def least_squares_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """½ (E (D(x) − 1)² + E D(x̂)²), a scalar (same equation)."""
    return 0.5 * ((real - 1).square().mean() + fake.square().mean())


@dataclass(frozen=True)
class AdversarialLoss:
    """A pair of losses on logits of any shape, one for each player.

    Attributes:
        generator: from the logits of reconstructions.
        discriminator: from the logits of images and of reconstructions.
        boundary: the logit above which the discriminator takes an image for real.
    """

    generator: Callable[[Tensor], Tensor]
    discriminator: Callable[[Tensor, Tensor], Tensor]
    boundary: float = 0.0


ADVERSARIAL_LOSSES: dict[str, AdversarialLoss] = {
    "hinge": AdversarialLoss(hinge_generator, hinge_discriminator),
    "non_saturating": AdversarialLoss(non_saturating_generator, non_saturating_discriminator),
    "least_squares": AdversarialLoss(least_squares_generator, least_squares_discriminator, boundary=0.5),
}
"""What `loss.adversarial.type` may name."""


@dataclass
class AdversarialTerms:
    """How the adversarial loss enters, and when each side learns. Steps are optimizer steps, from 0.

    Attributes:
        loss: what each side learns from.
        weight: the configured weight, which the adaptive weight multiplies.
        adaptive: whether the ratio of gradient norms at the last layer multiplies ``weight``.
        min_adaptive_weight, max_adaptive_weight: what that ratio is clamped to.
        start_step: the step at which the autoencoder first sees the discriminator.
        ramp_steps: over how many steps from there on the weight rises linearly; 0 has it whole at once.
        discriminator_warmup_steps: how many steps earlier the discriminator starts to learn.
        update_every: the discriminator learns at its first step and every so many steps after it.
    """

    loss: AdversarialLoss = ADVERSARIAL_LOSSES["hinge"]
    weight: float = 0.8
    adaptive: bool = True
    min_adaptive_weight: float = 0.0
    max_adaptive_weight: float = 1e4
    start_step: int = 0
    ramp_steps: int = 0
    discriminator_warmup_steps: int = 0
    update_every: int = 1

    @property
    def first_discriminator_step(self) -> int:
        """The step at which the discriminator starts to learn."""
        return max(0, self.start_step - self.discriminator_warmup_steps)

    def discriminator_learns(self, step: int) -> bool:
        """Whether ``step`` trains the discriminator."""
        since = step - self.first_discriminator_step
        return since >= 0 and since % self.update_every == 0

    def discriminator_updates(self, step: int) -> int:
        """How many steps before ``step`` have trained the discriminator."""
        return max(0, -(-(step - self.first_discriminator_step) // self.update_every))

    def autoencoder_learns(self, step: int) -> bool:
        """Whether ``step`` trains the autoencoder against the discriminator."""
        return step >= self.start_step

    def weight_at(self, step: int) -> float:
        """The configured weight at ``step``: 1/n of it at the first of n ramp steps, all from the n-th on."""
        if step < self.start_step:
            return 0.0
        return self.weight * min(1.0, (step - self.start_step + 1) / max(1, self.ramp_steps))
