"""Blocks without gradients and with fewer multiplications: for optimised models."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentae.devices import is_exporting, values_are_readable
from latentae.models.lean.doubling import doubled_by_products, doubling_kernel, doubling_products
from latentae.winograd import suits_winograd, winograd_conv, winograd_weight

# Other devices keep the stock blocks: nothing was measured there.
_DEVICES = ("cpu",)
_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
# With fewer channels a transposed convolution is faster than nine products. In bfloat16 it always serves:
# the products would be faster from 256 channels on, but round more often than a convolution does.
_LEAST_PRODUCT_CHANNELS = {torch.float32: 256, torch.float64: 1}


def can_rewrite(inputs: Tensor, conv: nn.Conv2d) -> bool:
    """Returns whether a block computes inputs [B, C, H, W] by the functions below instead of its stock code.

    Under autocast, while a compiler or an export follows the code, and on other devices it does not.
    """
    weight = conv.weight
    return (
        inputs.device.type in _DEVICES
        and inputs.device == weight.device
        and inputs.dtype == weight.dtype
        and inputs.dtype in _DTYPES
        and inputs.numel() > 0
        and not torch.is_autocast_enabled(inputs.device.type)
        and values_are_readable(inputs)
        and values_are_readable(weight)
        and not is_exporting()
    )


def fast_residual(
    inputs: Tensor,
    layers: tuple[nn.GroupNorm, nn.Conv2d, nn.GroupNorm, nn.Conv2d],
    shortcut: nn.Module | None,
) -> Tensor:
    """Returns shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x)))))) in channels last, without gradients.

    Args:
        inputs: [B, C, H, W].
        layers: norm1, conv1, norm2, conv2.
        shortcut: None adds x itself.
    """
    norm1, conv1, norm2, conv2 = layers
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    hidden = _activated_conv(inputs, norm1, conv1)
    hidden = _activated_conv(hidden, norm2, conv2)
    return hidden.add_(inputs if shortcut is None else shortcut(inputs))


def _activated_conv(inputs: Tensor, norm: nn.GroupNorm, conv: nn.Conv2d) -> Tensor:
    normalised = norm(inputs)
    if suits_winograd(conv, inputs):
        return winograd_conv(normalised, winograd_weight(conv.weight), conv.bias, activates=True)
    return conv(F.silu(normalised, inplace=True))


def fast_doubled_conv(inputs: Tensor, conv: nn.Conv2d) -> Tensor:
    """Returns conv(nearest-neighbour doubling of x) in channels last, without gradients.

    Args:
        inputs: [B, C, H, W].
        conv: 3×3 with padding 1.

    Returns:
        [B, C', 2H, 2W].
    """
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    channels = min(conv.in_channels, conv.out_channels)
    if channels >= _LEAST_PRODUCT_CHANNELS.get(inputs.dtype, math.inf):
        return doubled_by_products(inputs, doubling_products(conv.weight), conv.bias)
    return F.conv_transpose2d(inputs, doubling_kernel(conv.weight), conv.bias, stride=2, padding=1)
