"""The VQGAN step as published, written out plainly: what ours is measured and tested against.

The order of work is that of the reference implementation (taming-transformers under Lightning).
Autoencoder: a forward, two gradients at the last layer for the adaptive weight, a backward pass.
Discriminator: the autoencoder's forward again, and a backward pass of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latentae.losses.adversarial import AdversarialTerms, hinge_discriminator, hinge_generator
from latentae.losses.objective import ReconstructionObjective


def textbook_step(
    autoencoder: nn.Module,
    discriminator: nn.Module,
    objective: ReconstructionObjective,
    terms: AdversarialTerms,
    images: Tensor,
    step: int,
    accumulation: int = 1,
) -> None:
    """Adds the gradients of one of ``accumulation`` micro-batches to both networks' parameters."""
    discriminator.requires_grad_(False)
    output = autoencoder(images)
    nll, _ = objective(output.sample, images)
    loss = nll + output.commit_loss
    if terms.autoencoder_learns(step):
        generator = hinge_generator(discriminator(output.sample))
        factor: Tensor | float = 1.0
        if terms.adaptive:
            last_layer = autoencoder.decoder.conv_out.weight
            (nll_gradient,) = torch.autograd.grad(nll, last_layer, retain_graph=True)
            (generator_gradient,) = torch.autograd.grad(generator, last_layer, retain_graph=True)
            ratio = nll_gradient.norm() / (generator_gradient.norm() + 1e-4)
            factor = ratio.clamp(0, terms.max_adaptive_weight).detach()
        loss = loss + terms.weight * factor * generator
    (loss / accumulation).backward()
    discriminator.requires_grad_(True)

    if terms.discriminator_learns(step):
        fakes = autoencoder(images).sample.detach()
        loss = hinge_discriminator(discriminator(images), discriminator(fakes))
        (loss / accumulation).backward()
