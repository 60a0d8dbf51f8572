"""Adversarial losses, and the weight that balances them against the reconstruction."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class AdversarialTerms:
    """How the adversarial loss enters.

    Attributes:
        weight: the configured weight, which the adaptive weight multiplies.
        adaptive: whether the ratio of gradient norms at the last layer multiplies ``weight``.
        max_adaptive_weight: the clamp of that ratio.
        start_step: the optimizer step at which the autoencoder first sees the discriminator.
        discriminator_warmup_steps: how many steps earlier the discriminator starts to learn.
    """

    weight: float = 0.8
    adaptive: bool = True
    max_adaptive_weight: float = 1e4
    start_step: int = 0
    discriminator_warmup_steps: int = 0

    @property
    def first_discriminator_step(self) -> int:
        """The optimizer step at which the discriminator starts to learn."""
        return max(0, self.start_step - self.discriminator_warmup_steps)

    def discriminator_learns(self, step: int) -> bool:
        """Whether optimizer step ``step`` trains the discriminator."""
        return step >= self.first_discriminator_step

    def autoencoder_learns(self, step: int) -> bool:
        """Whether optimizer step ``step`` trains the autoencoder against the discriminator."""
        return step >= self.start_step


def hinge_generator(fake: Tensor) -> Tensor:
    """−E D(x̂), a scalar from the logits of reconstructions."""
    return -fake.mean()


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """½ (E relu(1 − D(x)) + E relu(1 + D(x̂))), a scalar from two sets of logits (Esser et al. 2021)."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def last_layer_gradient(layer: nn.Conv2d, inputs: Tensor, output_gradient: Tensor) -> Tensor:
    """Gradient of a loss with respect to a convolution's weight, without a backward pass to it.

    Args:
        layer: the decoder's last convolution.
        inputs: [B, C, H, W] what the layer was given.
        output_gradient: the loss's gradient at the layer's output; where the output was cropped afterwards at
            its right and bottom, the gradient at the crop.

    Returns:
        a tensor of the weight's shape, in the dtype of the output's gradient.
    """
    height, width = inputs.shape[-2:]
    missing = (0, width - output_gradient.shape[-1], 0, height - output_gradient.shape[-2])
    if any(missing):
        output_gradient = F.pad(output_gradient, missing)
    inputs = inputs.to(output_gradient.dtype)
    _, gradient, _ = torch.ops.aten.convolution_backward(
        output_gradient,
        inputs,
        layer.weight.to(output_gradient.dtype),
        None,
        layer.stride,
        layer.padding,
        layer.dilation,
        False,
        [0, 0],
        layer.groups,
        [False, True, False],
    )
    return gradient


def adaptive_weight(
    reconstruction_gradient: Tensor, adversarial_gradient: Tensor, maximum: float = 1e4
) -> Tensor:
    """λ = clamp(‖∇ nll‖ / (‖∇ g‖ + 1e-4), 0, maximum), equation 7 of VQGAN (Esser et al. 2021).

    Args:
        reconstruction_gradient, adversarial_gradient: the two losses' gradients at the decoder's last layer;
            with several ranks, averaged over them.

    Returns:
        a scalar without a gradient.
    """
    ratio = reconstruction_gradient.norm() / (adversarial_gradient.norm() + 1e-4)
    return ratio.clamp(0, maximum).detach()
