"""GroupNorm and SiLU, alone or before a convolution, that keep their input and two statistics for backward.

Autograd keeps the input of each operation: of GroupNorm–SiLU–convolution three tensors as large as the
activations. The elementwise part costs little beside the convolution, so here the backward pass computes it
again (Chen et al. 2016, arXiv 1604.06174), and only the first of the three is kept.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from latentae.models.lean.normalisation import (
    input_dtype,
    normalisation_gradient,
    normalise,
    normalise_again,
)

_VALUES_AT_ONCE = {"cpu": 2**20, "other": 2**27}


def activated(inputs: Tensor, norm: nn.GroupNorm) -> Tensor:
    """silu(norm(x)) of inputs [B, C, H, W]. It can be differentiated once."""
    return _Activated.apply(inputs.to(input_dtype(inputs, norm)), norm.weight, norm.bias, norm)


def activated_conv(inputs: Tensor, norm: nn.GroupNorm, conv: nn.Conv2d) -> Tensor:
    """conv(silu(norm(x))) of inputs [B, C, H, W], in the dtypes that autocast, where it is on, would choose.

    It can be differentiated once. Hooks of ``norm`` and ``conv`` are not called.
    """
    device = inputs.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else conv.weight.dtype
    inputs = inputs.to(input_dtype(inputs, norm))
    return _ActivatedConv.apply(inputs, norm.weight, norm.bias, conv.weight, conv.bias, norm, conv, dtype)


class _Activated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor, norm: nn.GroupNorm) -> Tensor:
        normalised, mean, rstd = normalise(inputs, norm)
        ctx.save_for_backward(inputs, mean, rstd, weight, bias)
        return F.silu(normalised, inplace=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, mean, rstd, weight, bias = ctx.saved_tensors
        normalised = normalise_again(inputs, mean, rstd, weight, bias)
        slope = torch.ops.aten.silu_backward(gradient, normalised)
        needed = list(ctx.needs_input_grad[:3])
        return *normalisation_gradient(slope, inputs, mean, rstd, weight, needed), None


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
        normalised, mean, rstd = normalise(inputs, norm)
        hidden = F.silu(normalised, inplace=True).to(dtype)
        ctx.save_for_backward(inputs, mean, rstd, norm_weight, norm_bias, weight)
        ctx.dtype, ctx.bias_size = dtype, None if bias is None else list(bias.shape)
        ctx.geometry, ctx.groups = (conv.stride, conv.padding, conv.dilation), conv.groups
        bias = None if bias is None else bias.to(dtype)
        return conv._conv_forward(hidden, weight.to(dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, mean, rstd, *parameters = ctx.saved_tensors
        inputs_gradient = torch.empty_like(inputs) if ctx.needs_input_grad[0] else None
        sums: list[Tensor | None] = []
        for part in _parts(inputs):
            of_inputs, *of_parameters = _conv_gradients(
                ctx, gradient[part], inputs[part], mean[part], rstd[part], *parameters
            )
            if inputs_gradient is not None:
                assert of_inputs is not None
                inputs_gradient[part] = of_inputs
            sums = [_plus(*pair) for pair in zip(sums, of_parameters, strict=True)] if sums else of_parameters
        return inputs_gradient, *sums, None, None, None


def _conv_gradients(
    ctx: Any,
    gradient: Tensor,
    inputs: Tensor,
    mean: Tensor,
    rstd: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
) -> tuple[Tensor | None, ...]:
    """Gradients of inputs, norm's weight and bias, convolution's weight and bias; None where not needed."""
    of_norm_needed = list(ctx.needs_input_grad[:3])
    normalised = normalise_again(inputs, mean, rstd, norm_weight, norm_bias)
    slope, weight_gradient, bias_gradient = torch.ops.aten.convolution_backward(
        gradient,
        F.silu(normalised).to(ctx.dtype),
        weight.to(ctx.dtype),
        ctx.bias_size,
        *ctx.geometry,
        False,
        [0, 0],
        ctx.groups,
        [any(of_norm_needed), *ctx.needs_input_grad[3:5]],
    )
    of_norm: tuple[Tensor | None, ...] = (None, None, None)
    if slope is not None:
        slope = torch.ops.aten.silu_backward(slope.to(normalised.dtype), normalised)
        del normalised
        of_norm = normalisation_gradient(slope, inputs, mean, rstd, norm_weight, of_norm_needed)
    of_conv = (None if g is None else g.to(weight.dtype) for g in (weight_gradient, bias_gradient))
    return *of_norm, *of_conv


def _parts(inputs: Tensor) -> list[slice]:
    """The batch in parts, so that what is computed again is never there of a whole batch of large images.

    On a CPU a part is what its caches hold; on a GPU it is as much as keeps it busy.
    """
    values = _VALUES_AT_ONCE["cpu" if inputs.device.type == "cpu" else "other"]
    size = max(1, values * len(inputs) // max(1, inputs.numel()))
    return [slice(start, start + size) for start in range(0, len(inputs), size)]


def _plus(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return first if first is None or second is None else first.add_(second)
