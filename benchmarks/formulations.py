"""Other programs' training steps, each written out plainly: what ours is measured against.

All take the same weights, images and losses. Each gives one update's gradients to the autoencoder and one's
to the discriminator, and is as its source does it, with what that costs; optimizers are left out everywhere.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import lpips
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.vae import Decoder, Encoder
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from latentae.losses.perceptual import LPIPS
from latentae.losses.reconstruction import ReconstructionObjective

_ADVERSARIAL_WEIGHT = 0.8


class TamingSwish(nn.Module):
    """`nonlinearity` of taming/modules/diffusionmodules/model.py: two operations, of which autograd keeps x
    and the sigmoid."""

    def forward(self, hidden: Tensor) -> Tensor:
        """x σ(x)."""
        return hidden * torch.sigmoid(hidden)


class TamingResnetBlock(ResnetBlock2D):
    """`ResnetBlock` of the same file; dropout is 0 in taming's configs, and its module is there."""

    def forward(self, hidden: Tensor, temb: None = None, *more: Any) -> Tensor:
        """[B, C', H, W] of [B, C, H, W]."""
        residual = self.conv1(self.nonlinearity(self.norm1(hidden)))
        residual = self.conv2(self.dropout(self.nonlinearity(self.norm2(residual))))
        if self.conv_shortcut is not None:
            hidden = self.conv_shortcut(hidden)
        return hidden + residual


def with_taming_blocks(autoencoder: nn.Module) -> nn.Module:
    """A copy with taming-transformers' activation and residual blocks, and the same weights.

    Attention stays diffusers', which is leaner than taming's product of matrices, at positions so few (64 of
    128 pixels a side) that it makes no difference. Resampling is the same in both.
    """
    model = copy.deepcopy(autoencoder)
    for module in model.modules():
        if type(module) is ResnetBlock2D:
            module.__class__, module.nonlinearity = TamingResnetBlock, TamingSwish()
        elif isinstance(module, Encoder | Decoder):
            module.conv_act = TamingSwish()
    return model


def packaged_lpips(ours: LPIPS) -> nn.Module:
    """The `lpips` package's module with our weights: diffusers' KL script uses it, and taming's own file,
    taming/modules/losses/lpips.py, computes the same in the same order. Both have it in evaluation mode."""
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

    Lightning turns off the gradients of what the optimizer in turn does not own. The loss module computes the
    perceptual loss before it looks whose turn it is, so in the discriminator's turn too.

    Args:
        autoencoder: ``with_taming_blocks``, to cost what taming's costs.
        objective: with ``packaged_lpips``, likewise.
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
    """diffusers' examples/vqgan: the networks take turns, each with a forward of the autoencoder of its own.

    The perceptual loss is a mean of squared distances between features of a VGG whose parameters are left to
    take gradients (the example sets an attribute of the module, which does not freeze them). The
    discriminator's turn has a gradient penalty. The example resizes to 224 pixels first; here, as in the
    other formulations, images go in as they are.

    Args:
        trunk: the slices of a VGG, each made to take gradients.
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
    """diffusers' examples/research_projects/autoencoderkl: turns as above, at a KL-VAE.

    The perceptual distance is computed without a gradient. The reconstruction that the discriminator learns
    from is not detached, so that its loss goes back through the autoencoder as well.

    Args:
        perceptual: ``packaged_lpips``, as the script has it.
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
