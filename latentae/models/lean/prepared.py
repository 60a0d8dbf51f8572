"""Convolutions without gradients, from weights that are rearranged once: for optimised models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentae.models.lean.doubling import doubled_by_products, doubling_kernel, doubling_products
from latentae.tracing import is_exporting, values_are_readable
from latentae.winograd import suits_winograd, winograd_conv, winograd_weight

Prepared = TypeVar("Prepared")

# Other devices keep the stock blocks: nothing was measured there.
_DEVICES = ("cpu",)
_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
# In bfloat16 nine products would be faster too, but round more often than a convolution does.
_PRODUCT_DTYPES = (torch.float32, torch.float64)


class PreparedWeights:
    """Keeps what was computed of a layer's weights until they change; never a part of a state dict.

    Copies and pickles are empty, and are filled when they are first used.
    """

    def __init__(self) -> None:
        self._kept: dict[str, tuple[tuple[Any, ...], Tensor, Any]] = {}

    def __reduce__(self) -> tuple[type[PreparedWeights], tuple[()]]:
        return PreparedWeights, ()

    def get(self, name: str, weight: Tensor, prepare: Callable[[Tensor], Prepared]) -> Prepared:
        """Returns ``prepare(weight)``, computed anew only if the weight has changed.

        Args:
            name: of the layer.
            weight: [C', C, ...].
        """
        weight = weight.detach()
        # Writing through `.data`, as optimizers and averages of other libraries do, leaves the version as it
        # is: a row and a column of the values tell.
        sample = torch.cat([weight[0].flatten(), weight[:, 0].flatten()])
        version = None if weight.is_inference() else weight._version
        key = (version, weight.data_ptr(), weight.dtype, weight.shape)
        kept = self._kept.get(name)
        if kept is None or kept[0] != key or not torch.equal(kept[1], sample):
            kept = (key, sample, prepare(weight))
            self._kept[name] = kept
        return kept[2]


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


def prepared_residual(
    inputs: Tensor,
    layers: tuple[nn.GroupNorm, nn.Conv2d, nn.GroupNorm, nn.Conv2d],
    shortcut: nn.Module | None,
    prepared: PreparedWeights,
) -> Tensor:
    """Returns shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x)))))) in channels last, without gradients.

    Args:
        inputs: [B, C, H, W].
        layers: norm1, conv1, norm2, conv2.
        shortcut: None adds x itself.
    """
    norm1, conv1, norm2, conv2 = layers
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    hidden = _activated_conv(inputs, norm1, conv1, "conv1", prepared)
    hidden = _activated_conv(hidden, norm2, conv2, "conv2", prepared)
    return hidden.add_(inputs if shortcut is None else shortcut(inputs))


def _activated_conv(
    inputs: Tensor, norm: nn.GroupNorm, conv: nn.Conv2d, name: str, prepared: PreparedWeights
) -> Tensor:
    normalised = norm(inputs)
    if suits_winograd(conv, inputs):
        weight = prepared.get(name, conv.weight, winograd_weight)
        return winograd_conv(normalised, weight, conv.bias, activates=True)
    return conv(F.silu(normalised, inplace=True))


def prepared_doubled_conv(inputs: Tensor, conv: nn.Conv2d, prepared: PreparedWeights, name: str) -> Tensor:
    """Returns conv(nearest-neighbour doubling of x) in channels last, without gradients.

    Args:
        inputs: [B, C, H, W].
        conv: 3×3 with padding 1.
        name: of the layer, among those of ``prepared``.

    Returns:
        [B, C', 2H, 2W].
    """
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    if inputs.dtype in _PRODUCT_DTYPES:
        products = prepared.get(name, conv.weight, doubling_products)
        return doubled_by_products(inputs, products, conv.bias)
    kernel = prepared.get(name, conv.weight, _rounded_kernel)
    return F.conv_transpose2d(inputs, kernel, conv.bias, stride=2, padding=1)


def _rounded_kernel(weight: Tensor) -> Tensor:
    """Returns ``doubling_kernel``, rounded once to the weight's dtype."""
    kernel = doubling_kernel(weight.float()).to(weight.dtype)
    return kernel.contiguous(memory_format=torch.channels_last)
