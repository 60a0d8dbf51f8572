"""diffusers' blocks with the same parameters and function that keep less for the backward pass, or do less.

Each is made of a stock block by exchanging its class, so that parameters, their names, and what refers to
them stay. Without gradients the stock forward runs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from latentae.models.lean.activated import activate, activated_conv
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
            and block.conv1.padding_mode == block.conv2.padding_mode == "zeros"
        )

    def forward(self, input_tensor: Tensor, temb: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        """[B, C', H, W] of [B, C, H, W]."""
        if temb is not None or not torch.is_grad_enabled():
            return super().forward(input_tensor, temb, *args, **kwargs)
        shortcut = self.conv_shortcut
        layers = (self.norm1, self.conv1, self.norm2, self.conv2)
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
            and (block.conv.kernel_size, block.conv.padding, block.conv.stride) == ((3, 3), (1, 1), (1, 1))
            and (block.conv.dilation, block.conv.groups) == ((1, 1), 1)
            and block.conv.padding_mode == "zeros"
        )

    def forward(
        self, hidden_states: Tensor, output_size: int | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """[B, C', 2H, 2W] of [B, C, H, W]."""
        if output_size is not None or not torch.is_grad_enabled():
            return super().forward(hidden_states, output_size, *args, **kwargs)
        return doubled_conv(hidden_states, self.conv.weight, self.conv.bias)


class LeanActivatedNorm(nn.GroupNorm):
    """The normalisation before an encoder's or decoder's last convolution, with the SiLU after it.

    With gradients it leaves its work to the ``LeanLastConv`` after it.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        """silu(norm(x)), [B, C, H, W]; with gradients x."""
        return inputs if torch.is_grad_enabled() else F.silu(super().forward(inputs))


class LeanLastConv(nn.Conv2d):
    """An encoder's or decoder's last convolution, with gradients also what comes before it."""

    # In a list, for a module would become a part of this one, with names of its own in the state dict.
    before: list[LeanActivatedNorm]

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, C', H, W] of [B, C, H, W], which is normalised and activated without gradients only."""
        if not torch.is_grad_enabled():
            return super().forward(inputs)
        return activated_conv(inputs, self.before[0], self)

    def convolved(self, inputs: Tensor) -> Tensor:
        """What was convolved where, with gradients, these were the inputs; detached."""
        with torch.no_grad():
            return activate(inputs, self.before[0])[0]
