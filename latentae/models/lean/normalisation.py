"""Group normalisation taken apart: forward, forward once more from its statistics, and backward."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def normalise(inputs: Tensor, norm: nn.GroupNorm) -> tuple[Tensor, Tensor, Tensor]:
    """What ``norm`` makes of inputs [B, C, ...], with the mean and 1/σ of each group [B, G]."""
    batch, channels = inputs.shape[:2]
    places = inputs.shape[2:].numel()
    return torch.native_group_norm(
        inputs.contiguous(), norm.weight, norm.bias, batch, channels, places, norm.num_groups, norm.eps
    )


def normalise_again(inputs: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The normalised inputs [B, C, ...], where the groups' statistics [B, G] are known already."""
    batch, channels = inputs.shape[:2]
    per_group = channels // mean.shape[1]
    scale = (rstd.repeat_interleave(per_group, dim=1) * weight).flatten()
    shift = (bias - mean.repeat_interleave(per_group, dim=1) * scale.view(batch, channels)).flatten()
    # A batch normalisation of B·C channels that neither measures nor centres is x·scale + shift, and in one
    # pass over the memory, which on a CPU a broadcast multiplication and addition is not.
    zero, one = torch.zeros_like(scale), torch.ones_like(scale)
    rows = inputs.reshape(1, batch * channels, -1)
    return torch.batch_norm(rows, scale, shift, zero, one, False, 0.0, 0.0, False).view(inputs.shape)


def normalisation_gradient(
    gradient: Tensor, inputs: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, needed: list[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of the inputs, the weight and the bias, each where it is needed."""
    batch, channels = inputs.shape[:2]
    places = inputs.shape[2:].numel()
    return torch.ops.aten.native_group_norm_backward(
        gradient.contiguous(),
        inputs.contiguous(),
        mean,
        rstd,
        weight,
        batch,
        channels,
        places,
        mean.shape[1],
        needed,
    )


def computing_dtype(inputs: Tensor, weight: Tensor) -> torch.dtype:
    """What a normalisation computes in, as autocast has it: on a GPU its weights' dtype, else its inputs'."""
    return inputs.dtype if inputs.device.type == "cpu" else weight.dtype
