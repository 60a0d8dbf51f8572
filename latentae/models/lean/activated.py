"""GroupNorm, SiLU and a convolution that keep their input and two statistics for the backward pass.

Autograd keeps the input of each operation: of GroupNorm–SiLU–convolution three tensors as large as the
activations. The elementwise part costs little beside the convolution, so here the backward pass computes it
again (Chen et al. 2016, arXiv 1604.06174), and only the first of the three is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from latentae.models.lean.normalisation import (
    computing_dtype,
    normalisation_gradient,
    normalise,
    normalise_again,
)
from latentae.models.lean.parts import plus, split_batch

Gradients = tuple[Tensor | None, ...]
"""Of the inputs, the normalisation's weight and bias, the convolution's weight and bias; None: not needed."""


@dataclass(frozen=True)
class Geometry:
    """How a convolution convolves, and in which dtype: what its backward pass has to know beside tensors."""

    stride: tuple[int, ...]
    padding: Any
    dilation: tuple[int, ...]
    groups: int
    bias_size: list[int] | None
    dtype: torch.dtype

    @classmethod
    def of(cls, conv: nn.Conv2d, dtype: torch.dtype) -> Geometry:
        bias_size = None if conv.bias is None else list(conv.bias.shape)
        return cls(conv.stride, conv.padding, conv.dilation, conv.groups, bias_size, dtype)


def activated_conv(inputs: Tensor, norm: nn.GroupNorm, conv: nn.Conv2d) -> Tensor:
    """conv(silu(norm(x))) of inputs [B, C, H, W], in the dtypes that autocast, where it is on, would choose.

    It can be differentiated once. Hooks of ``norm`` and ``conv`` are not called.
    """
    dtype = convolution_dtype(inputs, conv)
    return _ActivatedConv.apply(inputs, norm.weight, norm.bias, conv.weight, conv.bias, norm, conv, dtype)


def activate(inputs: Tensor, norm: nn.GroupNorm) -> tuple[Tensor, Tensor, Tensor]:
    """silu(norm(x)) of inputs [B, C, H, W], with each group's mean and 1/σ [B, G]; outside of autograd."""
    normalised, mean, rstd = normalise(inputs.to(computing_dtype(inputs, norm.weight)), norm)
    return F.silu(normalised, inplace=True), mean, rstd


def convolve(hidden: Tensor, conv: nn.Conv2d, dtype: torch.dtype) -> Tensor:
    """What ``conv`` makes of its input in a dtype; outside of autograd."""
    bias = None if conv.bias is None else conv.bias.to(dtype)
    return conv._conv_forward(hidden.to(dtype), conv.weight.to(dtype), bias)


def convolution_dtype(inputs: Tensor, conv: nn.Conv2d) -> torch.dtype:
    """What autocast, where it is on, has a convolution of these inputs compute in."""
    device = inputs.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else conv.weight.dtype


class _ActivatedConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        norm: nn.GroupNorm,
        conv: nn.Conv2d,
        dtype: torch.dtype,
    ) -> Tensor:
        hidden, mean, rstd = activate(inputs, norm)
        ctx.save_for_backward(inputs, mean, rstd, norm_weight, norm_bias, weight)
        ctx.geometry = Geometry.of(conv, dtype)
        return convolve(hidden, conv, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Gradients:
        inputs, mean, rstd, *parameters = ctx.saved_tensors
        needed = list(ctx.needs_input_grad[:5])
        of_inputs = torch.empty_like(inputs) if needed[0] else None
        sums: list[Tensor | None] = [None] * 4
        for part in split_batch(inputs):
            of_part, *of_parameters = activated_conv_gradients(
                gradient[part], inputs[part], (mean[part], rstd[part]), parameters, ctx.geometry, needed
            )
            if of_inputs is not None and of_part is not None:
                of_inputs[part] = of_part
            sums = [plus(*pair) for pair in zip(sums, of_parameters, strict=True)]
        return of_inputs, *sums, None, None, None


def activated_conv_gradients(
    gradient: Tensor,
    inputs: Tensor,
    statistics: Sequence[Tensor],
    parameters: Sequence[Tensor],
    geometry: Geometry,
    needed: list[bool],
) -> Gradients:
    """Gradients where the output's is known.

    Args:
        gradient: [B, C', H', W'] of the output.
        inputs, statistics: what the forward pass kept; the latter are mean and 1/σ.
        parameters: the normalisation's weight and bias, and the convolution's weight.
        needed: of which of the five in ``Gradients``.
    """
    (mean, rstd), (norm_weight, norm_bias, weight) = statistics, parameters
    computing = inputs.to(computing_dtype(inputs, norm_weight))
    normalised = normalise_again(computing, mean, rstd, norm_weight, norm_bias)
    slope, of_weight, of_bias = torch.ops.aten.convolution_backward(
        gradient,
        F.silu(normalised).to(geometry.dtype),
        weight.to(geometry.dtype),
        geometry.bias_size,
        geometry.stride,
        geometry.padding,
        geometry.dilation,
        False,
        [0, 0],
        geometry.groups,
        [any(needed[:3]), *needed[3:]],
    )
    of_norm: Gradients = (None, None, None)
    if slope is not None:
        slope = torch.ops.aten.silu_backward(slope.to(normalised.dtype), normalised)
        del normalised
        of_norm = normalisation_gradient(slope, computing, mean, rstd, norm_weight, needed[:3])
    of_inputs, *of_norm_parameters = of_norm
    of_conv = (None if g is None else g.to(weight.dtype) for g in (of_weight, of_bias))
    return None if of_inputs is None else of_inputs.to(inputs.dtype), *of_norm_parameters, *of_conv
