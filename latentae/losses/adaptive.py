"""The weight that balances the adversarial loss against the others (VQGAN, Esser et al. 2021, equation 7)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
    reconstruction_gradient: Tensor, adversarial_gradient: Tensor, minimum: float = 0.0, maximum: float = 1e4
) -> Tensor:
    """λ = clamp(‖∇ nll‖ / (‖∇ g‖ + 1e-4), minimum, maximum).

    Args:
        reconstruction_gradient, adversarial_gradient: the two losses' gradients at the decoder's last layer;
            with several ranks, averaged over them.
        minimum: a floor keeps the adversarial loss alive where the others are nearly at rest.
        maximum: a ceiling keeps it finite where its own gradient vanishes.

    Returns:
        a scalar without a gradient.
    """
    ratio = reconstruction_gradient.norm() / (adversarial_gradient.norm() + 1e-4)
    return ratio.clamp(minimum, maximum).detach()
