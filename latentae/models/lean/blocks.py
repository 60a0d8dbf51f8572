"""diffusers' blocks with the same parameters and function that keep less for the backward pass, or do less.

Each is made of a stock block by exchanging its class, so that parameters, their names, and what refers to
them stay. Without gradients the stock forward runs, and so it does where a layer has an adapter or a hook.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.autoencoders.vae import Decoder, Encoder
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from latentae.models.lean.activated import activate, activated_conv
from latentae.models.lean.parts import is_plain
from latentae.models.lean.residual import residual
from latentae.models.lean.upsampling import doubled_conv


class LeanResnetBlock2D(ResnetBlock2D):
    """A residual block that keeps its input and what its first convolution puts out: two tensors of six.

    Attributes:
        recomputed_channels: with as few channels or fewer, the input alone.
    """

    recomputed_channels: int = 0

    @classmethod
    def fits(cls, block: nn.Module) -> bool:
        """Whether the block is as autoencoders have it: SiLU, no time embedding, resampling or dropout."""
        return (
            type(block) is ResnetBlock2D
            and block.time_emb_proj is None
            and block.time_embedding_norm in ("default", "group")  # the same, but for a time embedding
            and block.upsample is None
            and block.downsample is None
            and block.dropout.p == 0
            and isinstance(block.nonlinearity, nn.SiLU)
            and is_plain((block.norm1, block.conv1, block.norm2, block.conv2), nn.GroupNorm, nn.Conv2d)
            and block.conv1.padding_mode == block.conv2.padding_mode == "zeros"
        )

    def forward(self, input_tensor: Tensor, temb: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        """[B, C', H, W] of [B, C, H, W]."""
        layers = (self.norm1, self.conv1, self.norm2, self.conv2)
        if temb is not None or not torch.is_grad_enabled() or not is_plain(layers, nn.GroupNorm, nn.Conv2d):
            return super().forward(input_tensor, temb, *args, **kwargs)
        shortcut = self.conv_shortcut
        keeps_hidden = self.conv1.in_channels > self.recomputed_channels
        hidden = residual(input_tensor, layers, adds=shortcut is None, keeps_hidden=keeps_hidden)
        if shortcut is not None:
            # Nothing keeps it, and it is as large as all that is kept.
            hidden = hidden.add_(shortcut(input_tensor.contiguous()))
        # A division by one would be another pass over it, forward and backward.
        return hidden if self.output_scale_factor == 1 else hidden / self.output_scale_factor


class LeanUpsample2D(Upsample2D):
    """Doubling and a 3×3 convolution, in one transposed convolution: ``doubled_conv``."""

    @classmethod
    def fits(cls, block: nn.Module) -> bool:
        """Whether the block is one as autoencoders have: nearest neighbours, then a 3×3 convolution."""
        return (
            type(block) is Upsample2D
            and block.norm is None
            and block.interpolate
            and block.use_conv
            and not block.use_conv_transpose
            and block.name == "conv"
            and is_plain([block.conv], nn.Conv2d)
            and (block.conv.kernel_size, block.conv.padding, block.conv.stride) == ((3, 3), (1, 1), (1, 1))
            and (block.conv.dilation, block.conv.groups) == ((1, 1), 1)
            and block.conv.padding_mode == "zeros"
        )

    def forward(
        self, hidden_states: Tensor, output_size: int | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """[B, C', 2H, 2W] of [B, C, H, W]."""
        if output_size is not None or not torch.is_grad_enabled() or not is_plain([self.conv], nn.Conv2d):
            return super().forward(hidden_states, output_size, *args, **kwargs)
        return doubled_conv(hidden_states, self.conv.weight, self.conv.bias)


class LeanActivatedNorm(nn.GroupNorm):
    """The normalisation before an encoder's or decoder's last convolution.

    With gradients it and the SiLU after it leave their work to the ``LeanLastConv`` after them.
    """

    # In a list, for a module would become a part of this one, with names of its own in the state dict.
    part: list[Encoder | Decoder]

    @property
    def is_left_to_conv(self) -> bool:
        """Whether the convolution that follows does this work, where there are gradients."""
        part = self.part[0]
        return (
            part.conv_norm_out is self
            and type(part.conv_out) is LeanLastConv
            and is_plain((self, part.conv_act), LeanActivatedNorm, LeanLastSiLU)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """norm(x), [B, C, H, W], or x where the convolution does this work."""
        left = torch.is_grad_enabled() and self.is_left_to_conv
        return inputs if left else super().forward(inputs)


class LeanLastSiLU(nn.SiLU):
    """The activation between the two."""

    before: list[LeanActivatedNorm]  # in a list, as there

    def forward(self, inputs: Tensor) -> Tensor:
        """silu(x), or x where the convolution does this work."""
        left = torch.is_grad_enabled() and self.before[0].is_left_to_conv
        return inputs if left else super().forward(inputs)


class LeanLastConv(nn.Conv2d):
    """An encoder's or decoder's last convolution, with gradients also what comes before it."""

    # In a sequence, as there. Empty in the convolutions that an adapter makes in this one's image.
    before: Sequence[LeanActivatedNorm] = ()

    @property
    def does_norm(self) -> bool:
        """Whether, where there are gradients, the inputs are to be normalised and activated here."""
        return bool(self.before) and self.before[0].is_left_to_conv

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, C', H, W] of [B, C, H, W], which is normalised and activated already unless ``does_norm``."""
        if torch.is_grad_enabled() and self.does_norm:
            return activated_conv(inputs, self.before[0], self)
        return super().forward(inputs)

    def convolved(self, inputs: Tensor) -> Tensor:
        """What was convolved where, with gradients, these were the inputs; detached."""
        if not self.does_norm:
            return inputs.detach()
        with torch.no_grad():
            return activate(inputs, self.before[0])[0]
