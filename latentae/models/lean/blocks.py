"""diffusers' blocks with the same parameters and outputs that need less memory or work for the backward pass.

``make_lean`` changes the class of an existing block, so that its parameters, their names and all references
to them stay valid. The stock forward runs if a layer has an adapter or a hook, and without gradients unless
the model is optimised for inference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.vae import Decoder, Encoder
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from latentae.devices import is_exporting, values_are_readable
from latentae.models.lean.doubling import (
    doubled_by_products,
    doubled_conv,
    doubling_kernel,
    doubling_products,
)
from latentae.models.lean.functions import activate, activated_conv, is_plain, residual
from latentae.winograd import suits_winograd, winograd_conv, winograd_weight

# Other devices keep the stock blocks without gradients: nothing was measured there.
_DEVICES = ("cpu",)
_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
# With fewer channels a transposed convolution is faster than nine products. In bfloat16 it always serves:
# the products would be faster from 256 channels on, but round more often than a convolution does.
_LEAST_PRODUCT_CHANNELS = {torch.float32: 256, torch.float64: 1}


class LeanResnetBlock2D(ResnetBlock2D):
    """A residual block that keeps its input and its first convolution's output: two tensors instead of six.

    Attributes:
        recomputed_channels: a block with at most this many input channels keeps only its input.
        is_fast: whether calls without gradients are rewritten too; else the stock code runs there.
    """

    recomputed_channels: int = 0
    is_fast: bool = False

    @classmethod
    def fits(cls, block: nn.Module) -> bool:
        """Returns whether the block is an autoencoder's: SiLU, no time embedding, resampling or dropout."""
        return (
            type(block) is ResnetBlock2D
            and block.time_emb_proj is None
            and block.time_embedding_norm in ("default", "group")  # they differ only with a time embedding
            and block.upsample is None
            and block.downsample is None
            and block.dropout.p == 0
            and isinstance(block.nonlinearity, nn.SiLU)
            and is_plain((block.norm1, block.conv1, block.norm2, block.conv2), nn.GroupNorm, nn.Conv2d)
            and block.conv1.padding_mode == block.conv2.padding_mode == "zeros"
        )

    def forward(self, input_tensor: Tensor, temb: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        """Maps [B, C, H, W] to [B, C', H, W]."""
        layers = (self.norm1, self.conv1, self.norm2, self.conv2)
        shortcut = self.conv_shortcut
        if temb is not None or not is_plain(layers, nn.GroupNorm, nn.Conv2d):
            return super().forward(input_tensor, temb, *args, **kwargs)
        if not torch.is_grad_enabled():
            if not self.is_fast or not _can_rewrite(input_tensor, self.conv1):
                return super().forward(input_tensor, temb, *args, **kwargs)
            hidden = _fast_residual(input_tensor, layers, shortcut)
            return hidden if self.output_scale_factor == 1 else hidden.div_(self.output_scale_factor)
        keeps_hidden = self.conv1.in_channels > self.recomputed_channels
        hidden = residual(input_tensor, layers, adds=shortcut is None, keeps_hidden=keeps_hidden)
        if shortcut is not None:
            # In place, because nothing else refers to this tensor.
            hidden = hidden.add_(shortcut(input_tensor.contiguous()))
        # Dividing by one would cost another pass over memory, forward and backward.
        return hidden if self.output_scale_factor == 1 else hidden / self.output_scale_factor


class LeanUpsample2D(Upsample2D):
    """Nearest-neighbour doubling and a 3×3 convolution in one: ``doubled_conv``.

    Attributes:
        is_fast: whether calls without gradients are rewritten too; else the stock code runs there.
    """

    is_fast: bool = False

    @classmethod
    def fits(cls, block: nn.Module) -> bool:
        """Returns whether the block is an autoencoder's: nearest neighbours, then a 3×3 convolution."""
        return (
            type(block) is Upsample2D
            and block.norm is None
            and block.interpolate
            and block.use_conv
            and not block.use_conv_transpose
            and block.name == "conv"
            and _is_usual_conv(block.conv)
        )

    def forward(
        self, hidden_states: Tensor, output_size: int | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Maps [B, C, H, W] to [B, C', 2H, 2W]."""
        if output_size is not None or not is_plain([self.conv], nn.Conv2d):
            return super().forward(hidden_states, output_size, *args, **kwargs)
        if not torch.is_grad_enabled():
            if not self.is_fast or not _can_rewrite(hidden_states, self.conv):
                return super().forward(hidden_states, output_size, *args, **kwargs)
            return _fast_doubled_conv(hidden_states, self.conv)
        return doubled_conv(hidden_states, self.conv.weight, self.conv.bias)


class LeanSequential(nn.Sequential):
    """TAESD's layers: without gradients, doubling and the 3×3 convolution after it run in one.

    Attributes:
        is_fast: whether they do; else the stock code runs.
    """

    is_fast: bool = False

    @classmethod
    def fits(cls, layers: nn.Module) -> bool:
        """Returns whether a doubling is followed by a 3×3 convolution."""
        return type(layers) is nn.Sequential and any(
            _is_doubling(layer) and _is_usual_conv(conv) for layer, conv in pairwise(layers)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps [B, C, H, W] through all layers."""
        if torch.is_grad_enabled() or not self.is_fast:
            return super().forward(inputs)
        layers = [*self, nn.Identity()]
        is_done = False  # by the layer before
        for layer, conv in pairwise(layers):
            if is_done:
                is_done = False
            elif _is_doubling(layer) and _is_usual_conv(conv) and _can_rewrite(inputs, conv):
                inputs, is_done = _fast_doubled_conv(inputs, conv), True
            else:
                inputs = layer(inputs)
        return inputs


def _is_doubling(layer: nn.Module) -> bool:
    return (
        isinstance(layer, nn.Upsample)
        and is_plain([layer], nn.Upsample)
        and (layer.mode, layer.size) == ("nearest", None)
        and layer.scale_factor in (2, (2.0, 2.0))
    )


def _is_usual_conv(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Returns whether this is a plain 3×3 convolution that keeps height and width."""
    return (
        isinstance(conv, nn.Conv2d)
        and is_plain([conv], nn.Conv2d)
        and (conv.kernel_size, conv.padding, conv.stride) == ((3, 3), (1, 1), (1, 1))
        and (conv.dilation, conv.groups, conv.padding_mode) == ((1, 1), 1, "zeros")
    )


class LeanActivatedNorm(nn.GroupNorm):
    """The normalisation before an encoder's or decoder's last convolution.

    With gradients, it and the SiLU after it return their input, and ``LeanLastConv`` does all three
    operations.
    """

    # In a list, because a module would become a submodule of this one and enter the state dict.
    part: list[Encoder | Decoder]

    @property
    def is_left_to_conv(self) -> bool:
        """Whether the following convolution normalises and activates, if there are gradients."""
        part = self.part[0]
        return (
            part.conv_norm_out is self
            and type(part.conv_out) is LeanLastConv
            and is_plain((self, part.conv_act), LeanActivatedNorm, LeanLastSiLU)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns norm(x) [B, C, H, W], or x if the convolution normalises."""
        left = torch.is_grad_enabled() and self.is_left_to_conv
        return inputs if left else super().forward(inputs)


class LeanLastSiLU(nn.SiLU):
    """The SiLU between the normalisation and the last convolution."""

    before: list[LeanActivatedNorm]  # in a list, as above

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns silu(x), or x if the convolution activates."""
        left = torch.is_grad_enabled() and self.before[0].is_left_to_conv
        return inputs if left else super().forward(inputs)


class LeanLastConv(nn.Conv2d):
    """An encoder's or decoder's last convolution; with gradients, also the norm and SiLU before it."""

    # In a sequence, as above. Empty in convolutions that an adapter creates after this one's class.
    before: Sequence[LeanActivatedNorm] = ()

    @property
    def does_norm(self) -> bool:
        """Whether this layer normalises and activates its inputs, if there are gradients."""
        return bool(self.before) and self.before[0].is_left_to_conv

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps [B, C, H, W], already normalised and activated unless ``does_norm``, to [B, C', H, W]."""
        if torch.is_grad_enabled() and self.does_norm:
            return activated_conv(inputs, self.before[0], self)
        return super().forward(inputs)

    def convolved(self, inputs: Tensor) -> Tensor:
        """Returns what a forward pass with gradients and these inputs convolves, detached."""
        if not self.does_norm:
            return inputs.detach()
        with torch.no_grad():
            return activate(inputs, self.before[0])[0]


def _can_rewrite(inputs: Tensor, conv: nn.Conv2d) -> bool:
    """Returns whether inputs [B, C, H, W] take the two functions below instead of a block's stock code.

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


def _fast_residual(
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
    hidden = _fast_activated_conv(inputs, norm1, conv1)
    hidden = _fast_activated_conv(hidden, norm2, conv2)
    return hidden.add_(inputs if shortcut is None else shortcut(inputs))


def _fast_activated_conv(inputs: Tensor, norm: nn.GroupNorm, conv: nn.Conv2d) -> Tensor:
    normalised = norm(inputs)
    if suits_winograd(conv, inputs):
        return winograd_conv(normalised, winograd_weight(conv.weight), conv.bias, activates=True)
    return conv(F.silu(normalised, inplace=True))


def _fast_doubled_conv(inputs: Tensor, conv: nn.Conv2d) -> Tensor:
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
