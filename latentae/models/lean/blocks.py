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

from latentae.models.lean.activated import activated, activated_conv


class LeanResnetBlock2D(ResnetBlock2D):
    """A residual block that keeps its input and what its first convolution puts out: two tensors of six."""

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
        hidden = activated_conv(input_tensor, self.norm1, self.conv1)
        hidden = activated_conv(hidden, self.norm2, self.conv2)
        if self.conv_shortcut is not None:
            input_tensor = self.conv_shortcut(input_tensor.contiguous())
        if hidden.dtype == torch.promote_types(hidden.dtype, input_tensor.dtype):
            hidden = hidden.add_(input_tensor)  # nothing keeps it, and it is as large as all that is kept
        else:
            hidden = input_tensor + hidden
        # A division by one would be another pass over it, forward and backward.
        return hidden if self.output_scale_factor == 1 else hidden / self.output_scale_factor


class LeanUpsample2D(Upsample2D):
    """Doubling by repetition and a 3×3 convolution, in one transposed convolution at 4/9 of the work.

    Of a 3×3 window over doubled pixels at most 2×2 are different ones. So the window's weights can be added
    up by the pixel they meet: a 4×4 kernel that is the 3×3 one convolved with a 2×2 of ones, with stride 2.
    It is the same function but for rounding, and the doubled tensor is never there.
    """

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
        kernel = doubling_kernel(self.conv.weight)
        return F.conv_transpose2d(hidden_states, kernel, self.conv.bias, stride=2, padding=1)


def doubling_kernel(weight: Tensor) -> Tensor:
    """Kernel [C, C', 4, 4] of the transposed convolution, of the one [C', C, 3, 3] that follows doubling."""
    kernel = F.pad(weight.flip(2, 3).transpose(0, 1), (1, 1, 1, 1))
    kernel = kernel[:, :, :-1] + kernel[:, :, 1:]
    return kernel[..., :-1] + kernel[..., 1:]


class LeanActivatedNorm(nn.GroupNorm):
    """The normalisation before an encoder's or decoder's last convolution, with the SiLU after it."""

    def forward(self, inputs: Tensor) -> Tensor:
        """silu(norm(x)), [B, C, H, W]."""
        return activated(inputs, self) if torch.is_grad_enabled() else F.silu(super().forward(inputs))
