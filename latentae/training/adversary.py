"""The discriminator in training: what it tells the autoencoder, and what it learns itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from latentae.discriminators import DiffAugment
from latentae.losses.adversarial import R1, AdversarialTerms, LeCAM, squared_slope
from latentae.training.randomness import StepRandomness

GRADIENT_LOSSES = frozenset({"r1"})
"""Names of losses that are made of gradients under the loss scale, and overflow when it is too large."""


@dataclass
class Adversary:
    """The autoencoder's opponent.

    Attributes:
        discriminator: the prepared (wrapped) network, images [B, C, H, W] to logits.
        terms: losses, weight and schedule.
        augmentation: what images and reconstructions go through before they are judged, or None.
        lecam: holds its logits together, or None.
        r1: holds its slope down, or None.
        reuse_forward: whether the logits that taught the autoencoder teach the discriminator too; false where
            a forward changes the network.
        loss_scale: multiplies a scalar by the loss scale of float16 training; None without one.
    """

    discriminator: nn.Module
    terms: AdversarialTerms = field(default_factory=AdversarialTerms)
    augmentation: DiffAugment | None = None
    lecam: LeCAM | None = None
    r1: R1 | None = None
    reuse_forward: bool = True
    loss_scale: Callable[[Tensor], Tensor] | None = None

    def judge(self, reconstruction: Tensor, randomness: StepRandomness) -> Tensor:
        """Logits of a reconstruction; within a micro-batch it is augmented the same each time."""
        return self.discriminator(self._augmented(reconstruction, randomness, "augmented reconstruction"))

    def keeps_graph(self, step: int) -> bool:
        """Whether the forward of ``judge`` is needed again in ``learn``."""
        return self.reuse_forward and self.terms.discriminator_learns(step)

    def learn(
        self, images: Tensor, reconstruction: Tensor, fake: Tensor | None, randomness: StepRandomness
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The discriminator's whole loss of a micro-batch, for one backward, and its numbers.

        Args:
            images, reconstruction: [B, C, H, W] in [−1, 1].
            fake: what ``judge`` has made of the reconstruction, with its graph, or None.

        Returns:
            the loss, and detached scalars: the adversarial loss alone, and the unweighted terms that join it.
        """
        if fake is None or not self.reuse_forward:
            fake = self.judge(reconstruction.detach(), randomness)
        inputs = self._augmented(images, randomness, "augmented images")
        r1 = self.r1 if self._r1_is_due(randomness.step) else None
        if r1 is not None:
            inputs = inputs.detach().requires_grad_()
        real = self.discriminator(inputs)
        loss = self.terms.loss.discriminator(real, fake)
        numbers = {"discriminator": loss.detach(), **self._verdicts(real.detach(), fake.detach())}
        if self.lecam is not None:
            closeness = self.lecam(real, fake)
            self.lecam.observe(real, fake)
            loss = loss + self.lecam.weight * closeness
            numbers["lecam"] = closeness.detach()
        if r1 is not None:
            slope = squared_slope(real, inputs, self.loss_scale)
            loss = loss + r1.factor * slope
            numbers["r1"] = slope.detach()
        return loss, numbers

    def commit(self, accepted: Tensor | bool = True) -> None:
        """Upkeep after an optimizer step that was made or, as ``accepted`` says, not; on every rank."""
        if self.lecam is not None:
            self.lecam.commit(accepted)

    def state_dict(self) -> dict[str, Tensor]:
        """What a resume needs besides the discriminator and its optimizer."""
        return {} if self.lecam is None else self.lecam.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes up a state written by ``state_dict``; where that was without LeCAM, it starts afresh."""
        if self.lecam is not None and state:
            self.lecam.load_state_dict(state)

    def _augmented(self, images: Tensor, randomness: StepRandomness, purpose: str) -> Tensor:
        if self.augmentation is None:
            return images
        return self.augmentation(
            images, randomness.uniform(purpose, len(images), self.augmentation.num_draws)
        )

    def _r1_is_due(self, step: int) -> bool:
        return self.r1 is not None and self.r1.due(self.terms.discriminator_updates(step))

    def _verdicts(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """Mean logits, their gap, and the share of each side's logits that is right."""
        boundary = self.terms.loss.boundary
        means = {"logits_real": real.mean(), "logits_fake": fake.mean()}
        return {
            **means,
            "logit_gap": means["logits_real"] - means["logits_fake"],
            "accuracy_real": (real > boundary).to(torch.float32).mean(),
            "accuracy_fake": (fake < boundary).to(torch.float32).mean(),
        }
