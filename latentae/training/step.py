"""One training step: the autoencoder and its discriminator learn from the same forward.

The textbook formulation (Esser et al. 2021) runs the decoder twice, the loss networks twice and the backward
pass three times. The gradients here are the same (a test holds them together to 1e-10); the work is not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from latentae import distributed
from latentae.losses.adversarial import (
    AdversarialTerms,
    adaptive_weight,
    hinge_discriminator,
    hinge_generator,
    last_layer_gradient,
)
from latentae.losses.objective import ReconstructionObjective
from latentae.training.randomness import StepRandomness

Backward = Callable[[Tensor], None]
Regulariser = Callable[[Any, int], dict[str, Tensor]]


@dataclass
class StepResult:
    """What a micro-batch reports.

    Attributes:
        losses: name to scalar, detached, on the device.
        indices: [B, h, w] the codes of a VQ model, or None.
    """

    losses: dict[str, Tensor]
    indices: Tensor | None


@dataclass
class TrainingStep:
    """Computes the gradients of one micro-batch; optimizers are the caller's.

    Attributes:
        autoencoder: the prepared (wrapped) model; its forward is the only entrance.
        last_layer: the decoder's last convolution, inside that model.
        objective: reconstruction and perceptual losses.
        discriminator: the prepared discriminator, or None for training without.
        adversarial: how its loss enters.
        regulariser: further losses of the autoencoder's output at a step, by name, weighted.
        latents_shape: [c, h, w] of some images' latents, where a sample of the posterior is decoded and not
            its mode.
        backward: accumulates gradients of a scalar; where accumulation and loss scaling take place.
        reuse_discriminator_forward: false where a forward of the discriminator changes it.
    """

    autoencoder: nn.Module
    last_layer: nn.Conv2d
    objective: ReconstructionObjective
    discriminator: nn.Module | None = None
    adversarial: AdversarialTerms = field(default_factory=AdversarialTerms)
    regulariser: Regulariser | None = None
    latents_shape: Callable[[Tensor], tuple[int, int, int]] | None = None
    backward: Backward = torch.Tensor.backward
    reuse_discriminator_forward: bool = True

    def __call__(self, images: Tensor, randomness: StepRandomness) -> StepResult:
        """Adds the gradients of one micro-batch.

        Args:
            images: [B, C, H, W] float32 in [−1, 1].
            randomness: of this step and micro-batch.
        """
        step = randomness.step
        noise = None
        if self.latents_shape is not None:
            noise = randomness.normal("posterior", len(images), *self.latents_shape(images))
        # 1. One forward, keeping what the last layer was given.
        with _InputOf(self.last_layer) as last_layer:
            output = self.autoencoder(images, noise=noise)
        regularisers = dict(output.losses or {})
        if self.regulariser is not None:
            regularisers |= self.regulariser(output, step)

        # 2. Gradients at a leaf that stands for the reconstruction: the losses never reach further back.
        leaf = output.sample.detach().to(images.dtype).requires_grad_()
        loss, metrics = self.objective(leaf, images)
        (gradient,) = torch.autograd.grad(loss, leaf)

        fake: Tensor | None = None
        if self.discriminator is not None and self.adversarial.autoencoder_learns(step):
            fake = self.discriminator(leaf)
            generator_loss = hinge_generator(fake)
            (adversarial_gradient,) = torch.autograd.grad(
                generator_loss, leaf, retain_graph=self.reuse_discriminator_forward
            )
            # 3. Their balance at the last layer.
            weight = self._weight(last_layer.inputs, gradient, adversarial_gradient, metrics)
            gradient = gradient + weight * adversarial_gradient
            metrics |= {"generator": generator_loss.detach(), "adversarial_weight": weight}

        # 4. One backward through the autoencoder: d/dθ Σ x̂·g is the vector-Jacobian product with g.
        surrogate = (output.sample * gradient).sum()
        self.backward(surrogate + sum(regularisers.values()))
        metrics |= {name: value.detach() for name, value in regularisers.items()}
        metrics["loss"] = loss.detach() + sum(value.detach() for value in regularisers.values())

        # 5. The discriminator, on the same images and the same reconstruction.
        if self.discriminator is not None and self.adversarial.discriminator_learns(step):
            metrics |= self._discriminator_step(images, leaf.detach(), fake)
        return StepResult(metrics, output.indices)

    def _weight(
        self, inputs: Tensor, gradient: Tensor, adversarial_gradient: Tensor, metrics: dict[str, Tensor]
    ) -> Tensor:
        """The factor of the adversarial gradient; norms are those of gradients averaged over ranks."""
        configured = gradient.new_tensor(self.adversarial.weight)
        if not self.adversarial.adaptive:
            return configured
        with torch.no_grad():
            gradients = torch.stack(
                [last_layer_gradient(self.last_layer, inputs, g) for g in (gradient, adversarial_gradient)]
            )
            first, second = distributed.all_reduce_mean(gradients)
            factor = adaptive_weight(first, second, self.adversarial.max_adaptive_weight)
        metrics["adaptive_factor"] = factor
        return configured * factor

    def _discriminator_step(self, images: Tensor, fakes: Tensor, fake: Tensor | None) -> dict[str, Tensor]:
        assert self.discriminator is not None
        if fake is None or not self.reuse_discriminator_forward:
            fake = self.discriminator(fakes)
        real = self.discriminator(images)
        loss = hinge_discriminator(real, fake)
        self.backward(loss)
        return {
            "discriminator": loss.detach(),
            "logits_real": real.detach().mean(),
            "logits_fake": fake.detach().mean(),
        }


class _InputOf:
    """Context in which the last input of a module is remembered, detached, as ``inputs``."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.inputs: Tensor

    def __enter__(self) -> _InputOf:
        self._hook = self.module.register_forward_pre_hook(self._remember)
        return self

    def __exit__(self, *exception: object) -> None:
        self._hook.remove()

    def _remember(self, module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        self.inputs = arguments[0].detach()
