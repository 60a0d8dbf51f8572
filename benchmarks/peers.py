"""Training steps of other programs, each written out plainly: what ours is measured and tested against.

All take the same weights, images and losses. Each adds the gradients of one update to the autoencoder and to
the discriminator. Optimizers are left out. ``textbook_step`` is the published algorithm, which the tests hold
our gradients to. The others follow their source line by line, including its cost.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import lpips
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.vae import Decoder, Encoder
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from latentae.losses.adversarial import AdversarialTerms
from latentae.losses.perceptual import LPIPS
from latentae.losses.reconstruction import ReconstructionObjective

_ADVERSARIAL_WEIGHT = 0.8


@dataclass
class Extras:
    """Additions to the published step.

    Attributes:
        augment_images, augment_reconstruction: applied to what the discriminator receives.
        lecam: its weight, and the averages of the logits for images and for reconstructions; None: no LeCAM.
        r1: γ, multiplied by the interval of the penalty; 0: no penalty.
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
    """The VQGAN step in the order of taming-transformers. Adds the gradients of one micro-batch.

    Autoencoder: a forward pass, two gradients at the last layer for the adaptive weight, a backward pass.
    Discriminator: another forward pass of the autoencoder, and a backward pass.

    Args:
        accumulation: the number of micro-batches of an update.
    """
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


class TamingSwish(nn.Module):
    """`nonlinearity` of taming/modules/diffusionmodules/model.py: two operations. Autograd keeps x and the
    sigmoid."""

    def forward(self, hidden: Tensor) -> Tensor:
        """x σ(x)."""
        return hidden * torch.sigmoid(hidden)


class TamingResnetBlock(ResnetBlock2D):
    """`ResnetBlock` of the same file. It calls dropout, which is 0 in taming's configs."""

    def forward(self, hidden: Tensor, temb: None = None, *more: Any) -> Tensor:
        """Maps [B, C, H, W] to [B, C', H, W]."""
        residual = self.conv1(self.nonlinearity(self.norm1(hidden)))
        residual = self.conv2(self.dropout(self.nonlinearity(self.norm2(residual))))
        if self.conv_shortcut is not None:
            hidden = self.conv_shortcut(hidden)
        return hidden + residual


def with_taming_blocks(autoencoder: nn.Module) -> nn.Module:
    """Returns a copy with taming-transformers' activation and residual blocks, and the same weights.

    Attention stays diffusers', which takes less memory than taming's matrix product. With as few positions as
    here (64 for images of 128x128) this makes no difference. Resampling is the same in both.
    """
    model = copy.deepcopy(autoencoder)
    for module in model.modules():
        if type(module) is ResnetBlock2D:
            module.__class__, module.nonlinearity = TamingResnetBlock, TamingSwish()
        elif isinstance(module, Encoder | Decoder):
            module.conv_act = TamingSwish()
    return model


def packaged_lpips(ours: LPIPS) -> nn.Module:
    """Returns the module of the `lpips` package with our weights, in evaluation mode.

    diffusers' KL script uses it. taming/modules/losses/lpips.py computes the same in the same order.
    """
    package = lpips.LPIPS(net=ours.net, pretrained=False, pnet_rand=True, verbose=False)
    for number, layers in enumerate(ours.slices, start=1):
        getattr(package.net, f"slice{number}").load_state_dict(layers.state_dict())
    for head, weight in zip(package.lins, ours.heads, strict=True):
        head.model[-1].weight.data.copy_(weight[None, :, None, None])
    return package.to(ours.heads[0]).requires_grad_(False).eval()


def taming_step(
    autoencoder: nn.Module, discriminator: nn.Module, objective: ReconstructionObjective, images: Tensor
) -> None:
    """taming-transformers under Lightning 1.0: `VQModel.training_step` for each of two optimizers.

    Lightning turns off the gradients of the parameters that the current optimizer does not own. The loss
    module always computes the perceptual loss, also in the discriminator's turn.

    Args:
        autoencoder: a result of ``with_taming_blocks``, so that it costs what taming's costs.
        objective: one with ``packaged_lpips``, for the same reason.
    """
    discriminator.requires_grad_(False)
    output = autoencoder(images)
    nll, _ = objective(output.sample, images)
    generator = -discriminator(output.sample).mean()
    weight = _balance(nll, generator, autoencoder.decoder.conv_out.weight)
    (nll + _ADVERSARIAL_WEIGHT * weight * generator + output.commit_loss).backward()
    discriminator.requires_grad_(True)

    autoencoder.requires_grad_(False)
    reconstruction = autoencoder(images).sample
    objective(reconstruction, images)
    real, fake = discriminator(images), discriminator(reconstruction)
    (0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())).backward()
    autoencoder.requires_grad_(True)


def diffusers_vqgan_steps(
    autoencoder: nn.Module, discriminator: nn.Module, trunk: Iterable[nn.Module], images: Tensor
) -> None:
    """diffusers' examples/vqgan: the networks take turns, and each turn runs the autoencoder forward.

    The perceptual loss is a mean of squared distances between features of a VGG whose parameters take
    gradients (the example sets an attribute of the module, which does not freeze them). The discriminator's
    turn has a gradient penalty. The example resizes to 224 pixels first. Here, as in the other steps, images
    keep their size.

    Args:
        trunk: the slices of a VGG whose parameters require gradients.
    """
    output = autoencoder(images)
    pixels = F.mse_loss(images, output.sample)
    pairs = list(zip(_features(trunk, images), _features(trunk, output.sample), strict=True))
    perceptual = sum(F.mse_loss(*pair) for pair in pairs) / len(pairs)
    generator = -discriminator(output.sample).mean()
    last = autoencoder.decoder.conv_out.weight
    norms = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (perceptual, generator)]
    weight = (norms[0] / norms[1].clamp(min=1e-8)).clamp(max=1e4)
    (pixels + output.commit_loss + perceptual + weight * generator).backward()

    reconstruction = autoencoder(images).sample.detach()
    inputs = images.detach().requires_grad_()
    real, fake = discriminator(inputs), discriminator(reconstruction)
    (slope,) = torch.autograd.grad(real, inputs, torch.ones_like(real), create_graph=True)
    penalty = 10 * ((slope.flatten(1).norm(dim=1) - 1) ** 2).mean()
    ((F.relu(1 + fake) + F.relu(1 - real)).mean() + penalty).backward()


def diffusers_kl_steps(
    autoencoder: nn.Module,
    discriminator: nn.Module,
    perceptual: nn.Module,
    images: Tensor,
    kl_weight: float = 1e-6,
) -> None:
    """diffusers' examples/research_projects/autoencoderkl: the same turns for a KL-VAE.

    The perceptual distance is computed without a gradient. The script does not detach the reconstruction in
    the discriminator's turn, so that loss is also propagated through the autoencoder.

    Args:
        perceptual: a result of ``packaged_lpips``, which the script uses.
    """
    posterior, reconstruction = _sample(autoencoder, images)
    with torch.no_grad():
        distance = perceptual(reconstruction, images).flatten()
    nll = (F.l1_loss(reconstruction, images, reduction="none") + distance[:, None, None, None]).sum()
    nll = nll / len(images)
    generator = -discriminator(reconstruction).mean()
    weight = _balance(nll, generator, autoencoder.decoder.conv_out.weight)
    (nll + kl_weight * posterior.kl().mean() + weight * generator).backward()

    _, reconstruction = _sample(autoencoder, images)
    real, fake = discriminator(images), discriminator(reconstruction)
    (0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())).backward()


def _balance(nll: Tensor, generator: Tensor, weight: Tensor) -> Tensor:
    first, second = (torch.autograd.grad(loss, weight, retain_graph=True)[0] for loss in (nll, generator))
    return (first.norm() / (second.norm() + 1e-4)).clamp(0, 1e4).detach()


def _sample(autoencoder: nn.Module, images: Tensor) -> tuple[object, Tensor]:
    posterior = autoencoder.encode(images).latent_dist
    return posterior, autoencoder.decode(posterior.sample()).sample


def _features(trunk: Iterable[nn.Module], images: Tensor) -> list[Tensor]:
    features = []
    for layers in trunk:
        images = layers(images)
        features.append(images)
    return features
