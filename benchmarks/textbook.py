"""The VQGAN step as published, written out plainly: what ours is measured and tested against.

The order of work is that of the reference implementation (taming-transformers under Lightning).
Autoencoder: a forward, two gradients at the last layer for the adaptive weight, a backward pass.
Discriminator: the autoencoder's forward again, and a backward pass of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latentae.losses.adversarial import AdversarialTerms
from latentae.losses.reconstruction import ReconstructionObjective


@dataclass
class Extras:
    """What may join the published step.

    Attributes:
        augment_images, augment_reconstruction: what the discriminator sees each of them through.
        lecam: its weight, and the averages of the logits of images and of reconstructions; or None.
        r1: γ, times k in a step that has the penalty; 0 without.
    """

    augment_images: Callable[[Tensor], Tensor] = lambda images: images
    augment_reconstruction: Callable[[Tensor], Tensor] = lambda images: images
    lecam: tuple[float, float, float] | None = None
    r1: float = 0.0


def textbook_step(
    autoencoder: nn.Module,
    discriminator: nn.Module,
    objective: ReconstructionObjective,
    terms: AdversarialTerms,
    images: Tensor,
    step: int,
    accumulation: int = 1,
    extras: Extras | None = None,
) -> None:
    """Adds the gradients of one of ``accumulation`` micro-batches to all networks' parameters."""
    extras = extras or Extras()
    discriminator.requires_grad_(False)
    output = autoencoder(images)
    nll, _ = objective(output.sample, images)
    loss = nll + output.commit_loss
    if terms.autoencoder_learns(step):
        generator = terms.loss.generator(discriminator(extras.augment_reconstruction(output.sample)))
        factor: Tensor | float = 1.0
        if terms.adaptive:
            last_layer = autoencoder.decoder.conv_out.weight
            (nll_gradient,) = torch.autograd.grad(nll, last_layer, retain_graph=True)
            (generator_gradient,) = torch.autograd.grad(generator, last_layer, retain_graph=True)
            ratio = nll_gradient.norm() / (generator_gradient.norm() + 1e-4)
            factor = ratio.clamp(terms.min_adaptive_weight, terms.max_adaptive_weight).detach()
        loss = loss + terms.weight_at(step) * factor * generator
    (loss / accumulation).backward()
    discriminator.requires_grad_(True)

    if terms.discriminator_learns(step):
        fakes = autoencoder(images).sample.detach()
        loss = _discriminator_loss(discriminator, terms, images, fakes, extras)
        (loss / accumulation).backward()


def _discriminator_loss(
    discriminator: nn.Module, terms: AdversarialTerms, images: Tensor, fakes: Tensor, extras: Extras
) -> Tensor:
    images = extras.augment_images(images).detach().requires_grad_(extras.r1 > 0)
    real, fake = discriminator(images), discriminator(extras.augment_reconstruction(fakes))
    loss = terms.loss.discriminator(real, fake)
    if extras.lecam is not None:
        weight, average_real, average_fake = extras.lecam
        above = (real - average_fake).clamp(min=0) ** 2
        below = (average_real - fake).clamp(min=0) ** 2
        loss = loss + weight * (above.mean() + below.mean())
    if extras.r1 > 0:
        for image in range(len(images)):
            (slope,) = torch.autograd.grad(real[image].sum(), images, create_graph=True)
            norm = slope[image].flatten() @ slope[image].flatten() / real[image].numel()
            loss = loss + extras.r1 / 2 * norm / len(images)
    return loss
