"""One training step of an autoencoder and, if there is one, its discriminator (VQGAN, Esser et al. 2021).

The published step runs the decoder twice, the loss networks twice and the backward pass three times. Here
each network runs once, and the gradients are the same (a test compares them to 1e-10). With the
reconstruction x̂, the weights θ of the autoencoder and the adversarial weight λ,

    ∂L/∂θ = (∂x̂/∂θ)ᵀ g   with   g = ∂nll/∂x̂ + λ ∂gen/∂x̂,

where nll is the reconstruction and perceptual loss, with the distance to a teacher's images if there is one,
and gen is the generator's loss. So the losses are differentiated with respect to x̂ only, and one backward
pass through the autoencoder does the rest. (EnCodec's balancer combines gradients in the same place, arXiv
2210.13438.) Five methods carry this out:

1. ``_forward``: x̂, the latents and the regularisers, by one call of the wrapped autoencoder.
2. ``_reconstruction_gradient``: ∂nll/∂x̂.
3. ``_adversarial_gradient``: λ ∂gen/∂x̂, where λ compares both gradients at the decoder's last convolution.
4. ``_backward_autoencoder``: (∂x̂/∂θ)ᵀ g, and the gradients of the regularisers.
5. ``_backward_discriminator``: the discriminator's gradients, from the same images and the same x̂.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from latentae.losses.reconstruction import ReconstructionObjective
from latentae.training.adversary import Adversary, CapturedCall
from latentae.training.latent_losses import LatentLosses, PreparedStep
from latentae.training.randomness import StepRandomness
from latentae.training.teacher import Teacher

Backward = Callable[[Tensor], None]
Regulariser = Callable[[Any, int], dict[str, Tensor]]
Report = Callable[[Any, dict[str, Tensor], int], dict[str, Tensor]]
Losses = dict[str, Tensor]
LearnedGradients = Sequence[tuple[nn.Parameter, Tensor]]


@dataclass
class StepResult:
    """The numbers that a micro-batch reports.

    Attributes:
        losses: name to scalar, detached, on the device.
        indices: [B, h, w] the codes of a VQ model, or None.
    """

    losses: Losses
    indices: Tensor | None


@dataclass
class TrainingStep:
    """Computes the gradients of one micro-batch. The caller updates the weights.

    Attributes:
        autoencoder: the wrapped model. Its forward is called once per micro-batch, as DDP requires.
        last_layer: the decoder's last convolution, inside that model.
        objective: reconstruction and perceptual loss. Its own parameters learn with the autoencoder.
        adversary: the discriminator and how its loss enters; None: training without one.
        regulariser: further weighted losses of the autoencoder's output at a step, by name.
        latent_losses: changes to the latents before they are decoded, and losses on them.
        teacher: a frozen model that the autoencoder imitates, or None.
        report: further numbers for the log, of the autoencoder's output and the losses so far at a step.
        latents_shape: returns [c, h, w] of some images' latents, if a sample of the posterior is decoded;
            None: its mode is decoded.
        alpha: whether images are RGBA, which the losses see as composites.
        output_gain: the derivative of the reconstruction with respect to the last layer's output.
        backward: accumulates the gradients of a scalar, with what accumulation and loss scaling need.
    """

    autoencoder: nn.Module
    last_layer: nn.Conv2d
    objective: ReconstructionObjective
    adversary: Adversary | None = None
    regulariser: Regulariser | None = None
    latent_losses: LatentLosses = field(default_factory=LatentLosses)
    teacher: Teacher | None = None
    report: Report | None = None
    latents_shape: Callable[[Tensor], tuple[int, int, int]] | None = None
    alpha: bool = False
    output_gain: float = 1.0
    backward: Backward = torch.Tensor.backward

    def __call__(
        self, images: Tensor, randomness: StepRandomness, moments: Tensor | None = None
    ) -> StepResult:
        """Adds the gradients of one micro-batch.

        Args:
            images: [B, C, H, W] float32 in [−1, 1].
            randomness: of this step and micro-batch.
            moments: of the images' latents, if they are known: see ``PreparedStep``. Then no encoder runs.
        """
        step, adversary = randomness.step, self.adversary
        prepared = self.latent_losses.prepare(images, randomness, alpha=self.alpha)
        prepared.moments = moments
        if self.alpha:
            prepared.backgrounds = randomness.background_colours(len(images))
        if self.teacher is not None:
            self.teacher.watch(prepared)

        # 1. The one forward.
        output, last_layer, encoder_output = self._forward(prepared, randomness)
        regularisers = self._regularisers(output, step)

        # 2. ∂nll/∂x̂. x̂ is a leaf: the losses' graphs start here and do not reach into the autoencoder.
        reconstruction = output.sample.detach().to(images.dtype).requires_grad_()
        loss, gradient, learned, metrics = self._reconstruction_gradient(reconstruction, prepared)
        more, numbers = self.latent_losses.losses(prepared, output, encoder_output, self.objective, gradient)
        regularisers, metrics = regularisers | more, metrics | numbers
        if self.teacher is not None:
            imitation = self.teacher.losses(prepared, output, reconstruction)
            loss, gradient = loss + imitation.loss, gradient + imitation.gradient
            regularisers, metrics = regularisers | imitation.regularisers, metrics | imitation.numbers

        # 3. λ ∂gen/∂x̂, once the autoencoder learns from the discriminator.
        fake = None
        if adversary is not None and adversary.terms.autoencoder_learns(step):
            fake, weighted, numbers = self._adversarial_gradient(
                adversary, reconstruction, gradient, last_layer, randomness
            )
            gradient = gradient + weighted
            metrics |= numbers

        # 4. One backward pass through the autoencoder. Nothing else may hold what it frees.
        del last_layer, encoder_output
        self._backward_autoencoder(output.sample, gradient, learned, regularisers)
        # A number that a loss reports itself, without its weight, stays.
        metrics = {name: value.detach() for name, value in regularisers.items()} | metrics
        metrics["loss"] = loss + sum(value.detach() for value in regularisers.values())
        if self.report is not None:
            metrics |= self.report(output, metrics, step)

        # 5. The discriminator, once it learns.
        if adversary is not None and adversary.terms.discriminator_learns(step):
            metrics |= self._backward_discriminator(
                adversary, prepared.target, reconstruction.detach(), fake, randomness
            )
        return StepResult(metrics, output.indices)

    def _forward(
        self, prepared: PreparedStep, randomness: StepRandomness
    ) -> tuple[Any, CapturedCall, CapturedCall | None]:
        """Runs the autoencoder, and captures the layers' calls that adaptive weights are measured at."""
        images, noise = prepared.images, None
        if self.latents_shape is not None:
            noise = randomness.normal("posterior", len(images), *self.latents_shape(images))
        given = {"noise": noise}
        if prepared.moments is not None:
            given = {"latents": _sample(prepared.moments, noise)}
        with ExitStack() as stack:
            last_layer = stack.enter_context(CapturedCall(self.last_layer, self.output_gain))
            layer = self.latent_losses.encoder_output
            encoder_output = None if layer is None else stack.enter_context(CapturedCall(layer))
            output = self.autoencoder(images, **given, **prepared.arguments)
        return output, last_layer, encoder_output

    def _regularisers(self, output: Any, step: int) -> Losses:
        """Returns the losses that have the autoencoder's own graph: the quantizer's, and the KL term."""
        # The losses of a frozen codebook have no gradient, and are left out.
        losses = {name: value for name, value in (output.losses or {}).items() if value.requires_grad}
        return losses if self.regulariser is None else losses | self.regulariser(output, step)

    def _reconstruction_gradient(
        self, reconstruction: Tensor, prepared: PreparedStep
    ) -> tuple[Tensor, Tensor, LearnedGradients, Losses]:
        """Returns nll, ∂nll/∂x̂, the gradients of the objective's own parameters, and numbers for the log."""
        backgrounds = {} if prepared.backgrounds is None else {"backgrounds": prepared.backgrounds}
        loss, metrics = self.objective(reconstruction, prepared.target, **backgrounds)
        if prepared.transformed:
            metrics["equivariance"] = loss.detach()
        learned = [parameter for parameter in self.objective.parameters() if parameter.requires_grad]
        gradient, *gradients = torch.autograd.grad(loss, [reconstruction, *learned])
        return loss.detach(), gradient, list(zip(learned, gradients, strict=True)), metrics

    def _adversarial_gradient(
        self,
        adversary: Adversary,
        reconstruction: Tensor,
        gradient: Tensor,
        last_layer: CapturedCall,
        randomness: StepRandomness,
    ) -> tuple[Tensor, Tensor, Losses]:
        """Returns the logits D(x̂) with their graph, λ ∂gen/∂x̂, and numbers for the log."""
        fake = adversary.logits(reconstruction, randomness)
        loss, adversarial = adversary.generator_gradient(reconstruction, fake, randomness.step)
        weight, numbers = adversary.weight(randomness.step, last_layer, gradient, adversarial)
        return fake, weight * adversarial, {"generator": loss, **numbers}

    def _backward_autoencoder(
        self, sample: Tensor, gradient: Tensor, learned: LearnedGradients, regularisers: Losses
    ) -> None:
        """Adds (∂x̂/∂θ)ᵀ g and the gradients of the regularisers by one backward pass."""
        # The derivative of Σ x̂ g, with g held constant, is (∂x̂/∂θ)ᵀ g. So is that of a parameter's product.
        total = (sample * gradient).sum()
        for parameter, parameter_gradient in learned:
            total = total + (parameter * parameter_gradient).sum()
        self.backward(total + sum(regularisers.values()))

    def _backward_discriminator(
        self,
        adversary: Adversary,
        images: Tensor,
        reconstruction: Tensor,
        fake: Tensor | None,
        randomness: StepRandomness,
    ) -> Losses:
        """Adds the discriminator's gradients, from the logits D(x̂) if there are any. Returns its numbers."""
        loss, numbers = adversary.discriminator_loss(images, reconstruction, fake, randomness)
        self.backward(loss)
        return numbers


def _sample(moments: Tensor, noise: Tensor | None) -> Tensor:
    """Returns latents [B, c, h, w]: a sample by the noise, as a model's forward draws it, or the mean."""
    if noise is None or moments.shape[1] == 1:
        return moments[:, 0]
    return moments[:, 0] + moments[:, 1] * noise
