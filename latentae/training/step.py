"""One training step: the autoencoder and its discriminator learn from the same forward.

The textbook formulation (Esser et al. 2021) runs the decoder twice, the loss networks twice and the backward
pass three times. The gradients here are the same (a test holds them together to 1e-10); the work is not.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from latentae import distributed
from latentae.losses.adversarial import AdversarialTerms, adaptive_weight, last_layer_gradient
from latentae.losses.reconstruction import ReconstructionObjective
from latentae.training.adversary import Adversary
from latentae.training.latent_losses import LatentLosses
from latentae.training.passage import Passage
from latentae.training.randomness import StepRandomness

Backward = Callable[[Tensor], None]
Regulariser = Callable[[Any, int], dict[str, Tensor]]
Report = Callable[[Any, dict[str, Tensor], int], dict[str, Tensor]]


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
        objective: reconstruction and perceptual losses; its own parameters learn with the autoencoder.
        adversary: the discriminator and how its loss enters, or None for training without.
        regulariser: further losses of the autoencoder's output at a step, by name, weighted.
        latent_losses: what is done to the latents before they are decoded, and losses of them.
        report: further numbers for the log, of the autoencoder's output and the losses so far at a step.
        latents_shape: [c, h, w] of some images' latents, where a sample of the posterior is decoded and not
            its mode.
        backward: accumulates gradients of a scalar; where accumulation and loss scaling take place.
    """

    autoencoder: nn.Module
    last_layer: nn.Conv2d
    objective: ReconstructionObjective
    adversary: Adversary | None = None
    regulariser: Regulariser | None = None
    latent_losses: LatentLosses = field(default_factory=LatentLosses)
    report: Report | None = None
    latents_shape: Callable[[Tensor], tuple[int, int, int]] | None = None
    backward: Backward = torch.Tensor.backward

    def __call__(self, images: Tensor, randomness: StepRandomness) -> StepResult:
        """Adds the gradients of one micro-batch.

        Args:
            images: [B, C, H, W] float32 in [−1, 1].
            randomness: of this step and micro-batch.
        """
        step, noise = randomness.step, None
        prepared = self.latent_losses.prepare(images, randomness)
        images = prepared.images
        if self.latents_shape is not None:
            noise = randomness.normal("posterior", len(images), *self.latents_shape(images))
        # 1. One forward, keeping what the last layer was given.
        with Passage(self.last_layer) as last_layer, self.latent_losses.watch() or nullcontext() as encoded:
            output = self.autoencoder(images, noise=noise, **prepared.arguments)
        # Those of a frozen codebook have no gradient, and count for nothing.
        regularisers = {name: value for name, value in (output.losses or {}).items() if value.requires_grad}
        if self.regulariser is not None:
            regularisers |= self.regulariser(output, step)

        # 2. Gradients at a leaf that stands for the reconstruction: the losses never reach further back.
        leaf = output.sample.detach().to(images.dtype).requires_grad_()
        loss, metrics = self.objective(leaf, prepared.target)
        if prepared.transformed:
            metrics["equivariance"] = loss.detach()
        learned = [parameter for parameter in self.objective.parameters() if parameter.requires_grad]
        gradient, *learned_gradients = torch.autograd.grad(loss, [leaf, *learned])
        more, numbers = self.latent_losses.losses(prepared, output, encoded, self.objective, gradient)
        regularisers, metrics = regularisers | more, metrics | numbers

        adversary, fake = self.adversary, None
        if adversary is not None and adversary.terms.autoencoder_learns(step):
            fake = adversary.judge(leaf, randomness)
            generator_loss, adversarial_gradient = _generator(adversary, leaf, fake, step)
            # 3. Their balance at the last layer.
            weight, numbers = self._weight(
                adversary.terms, step, last_layer.inputs, gradient, adversarial_gradient
            )
            gradient = gradient + weight * adversarial_gradient
            metrics |= {"generator": generator_loss, **numbers}

        del last_layer, encoded  # or the backward pass could not free what they remember
        # 4. One backward through the autoencoder: d/dθ Σ x̂·g is the vector-Jacobian product with g.
        surrogate = (output.sample * gradient).sum()
        for parameter, parameter_gradient in zip(learned, learned_gradients, strict=True):
            surrogate = surrogate + (parameter * parameter_gradient).sum()
        self.backward(surrogate + sum(regularisers.values()))
        metrics |= {name: value.detach() for name, value in regularisers.items()}
        metrics["loss"] = loss.detach() + sum(value.detach() for value in regularisers.values())
        if self.report is not None:
            metrics |= self.report(output, metrics, step)

        # 5. The discriminator, on the same images and the same reconstruction.
        if adversary is not None and adversary.terms.discriminator_learns(step):
            lesson, numbers = adversary.learn(prepared.target, leaf.detach(), fake, randomness)
            self.backward(lesson)
            metrics |= numbers
        return StepResult(metrics, output.indices)

    def commit(self, accepted: Tensor | bool = True) -> None:
        """Upkeep after an optimizer step that was made or, as ``accepted`` says, not; on every rank."""
        if self.adversary is not None:
            self.adversary.commit(accepted)

    def _weight(
        self,
        terms: AdversarialTerms,
        step: int,
        inputs: Tensor,
        gradient: Tensor,
        adversarial_gradient: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The factor of the adversarial gradient; norms are those of gradients averaged over ranks."""
        # Filled on the device: a copy of a number from the host would be waited for.
        weight = torch.full((), terms.weight_at(step), dtype=gradient.dtype, device=gradient.device)
        if not terms.adaptive:
            return weight, {"adversarial_weight": weight}
        with torch.no_grad():
            gradients = torch.stack(
                [last_layer_gradient(self.last_layer, inputs, g) for g in (gradient, adversarial_gradient)]
            )
            first, second = distributed.all_reduce_mean(gradients)
            factor = adaptive_weight(first, second, terms.min_adaptive_weight, terms.max_adaptive_weight)
        return weight * factor, {"adversarial_weight": weight * factor, "adaptive_factor": factor}


def _generator(adversary: Adversary, leaf: Tensor, fake: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """The loss that logits give the autoencoder, without a gradient, and its gradient at the leaf."""
    loss = adversary.terms.loss.generator(fake)
    # Of the sum over logits, the mean's gradient times their number: float16 would lose the mean's.
    scaled, keeps_graph = loss * fake.numel(), adversary.keeps_graph(step)
    (gradient,) = torch.autograd.grad(scaled, leaf, retain_graph=keeps_graph)
    return loss.detach(), gradient / fake.numel()
