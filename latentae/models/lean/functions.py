"""Autograd functions for GroupNorm, SiLU and convolutions that keep less memory for the backward pass.

Autograd keeps the input of every operation: three tensors as large as the activations for
GroupNorm–SiLU–convolution. The elementwise operations cost little compared with the convolution, so the
backward pass here recomputes them (Chen et al. 2016, arXiv 1604.06174) from the input and the statistics of
its groups.

All functions are differentiable once, and do not call the hooks of the layers that they are given.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from latentae.devices import is_exporting
from latentae.winograd import (
    suits_winograd,
    winograd_conv,
    winograd_input_gradient,
    winograd_weight,
    winograd_weight_gradient,
)

Gradients = tuple[Tensor | None, ...]
"""One gradient per input of a function; None where it is not needed."""
ResidualLayers = tuple[nn.GroupNorm, nn.Conv2d, nn.GroupNorm, nn.Conv2d]

# On a CPU about the size of its caches; on a GPU enough to keep it busy.
_VALUES_AT_ONCE = {"cpu": 2**20, "other": 2**27}

# Wider than without gradients, since here tensors have channels first, and Winograd's convolution reorders.
_LEAST_WINOGRAD_CHANNELS = 256


def is_plain(layers: Iterable[nn.Module], *kinds: type[nn.Module]) -> bool:
    """Returns whether a block may use the layers' weights directly instead of calling the layers.

    Adapters such as LoRA replace a layer or change its class. Hooks of torch, accelerate or diffusers may
    move the weights or change inputs and outputs.

    Args:
        layers: of a block.
        kinds: the allowed classes, without their subclasses.
    """
    return all(
        type(layer) in kinds
        and not layer._forward_pre_hooks
        and not layer._forward_hooks
        and "forward" not in vars(layer)  # accelerate and diffusers replace it
        for layer in layers
    )


def split_batch(inputs: Tensor) -> list[slice]:
    """Returns slices of a batch [B, ...] with roughly as many values as are best computed at once.

    The backward pass recomputes one slice at a time, so that it never holds recomputed tensors for the batch.
    """
    values = _VALUES_AT_ONCE["cpu" if inputs.device.type == "cpu" else "other"]
    size = max(1, values * len(inputs) // max(1, inputs.numel()))
    return [slice(start, start + size) for start in range(0, len(inputs), size)]


def add_gradients(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    """Returns the sum, computed in place in ``total`` if both are given."""
    if total is None or more is None:
        return more if total is None else total
    return total.add_(more)


def computing_dtype(inputs: Tensor, weight: Tensor) -> torch.dtype:
    """Returns the dtype a normalisation computes in: its inputs' on a CPU, its weights' elsewhere."""
    return inputs.dtype if inputs.device.type == "cpu" else weight.dtype


def autocast_dtype(inputs: Tensor, weight: Tensor) -> torch.dtype:
    """Returns the dtype a convolution or linear layer computes in: autocast's if on, else its weights'."""
    device = inputs.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


# Group normalisation in three steps: forward, again from known statistics, and backward.


def normalise(inputs: Tensor, norm: nn.GroupNorm) -> tuple[Tensor, Tensor, Tensor]:
    """Returns norm(x) of inputs [B, C, ...], and each group's mean and 1/σ, both [B, G]."""
    batch, channels = inputs.shape[:2]
    positions = inputs.shape[2:].numel()
    return torch.native_group_norm(
        inputs.contiguous(), norm.weight, norm.bias, batch, channels, positions, norm.num_groups, norm.eps
    )


def normalise_again(inputs: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Returns the normalised inputs [B, C, ...] from the statistics [B, G] of ``normalise``."""
    batch, channels = inputs.shape[:2]
    per_group = channels // mean.shape[1]
    scale = (rstd.repeat_interleave(per_group, dim=1) * weight).flatten()
    shift = (bias - mean.repeat_interleave(per_group, dim=1) * scale.view(batch, channels)).flatten()
    # Batch normalisation over B·C channels with mean 0 and variance 1 computes x·scale + shift in one pass
    # over memory. A broadcast multiplication and addition would take two on a CPU.
    zero, one = torch.zeros_like(scale), torch.ones_like(scale)
    rows = inputs.reshape(1, batch * channels, -1)
    return torch.batch_norm(rows, scale, shift, zero, one, False, 0.0, 0.0, False).view(inputs.shape)


def normalisation_gradient(
    gradient: Tensor, inputs: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, needed: list[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Returns the gradients of the inputs, the weight and the bias, as far as they are ``needed``."""
    batch, channels = inputs.shape[:2]
    positions, groups = inputs.shape[2:].numel(), mean.shape[1]
    return torch.ops.aten.native_group_norm_backward(
        gradient.contiguous(),
        inputs.contiguous(),
        mean,
        rstd,
        weight,
        batch,
        channels,
        positions,
        groups,
        needed,
    )


# conv(silu(norm(x)))


@dataclass(frozen=True)
class Geometry:
    """The settings of a convolution that its backward pass needs, and how it computes.

    Attributes:
        dtype: that it computes in.
        by_winograd: whether it takes Winograd's convolution.
    """

    stride: tuple[int, ...]
    padding: Any
    dilation: tuple[int, ...]
    groups: int
    bias_size: list[int] | None
    dtype: torch.dtype
    by_winograd: bool

    @classmethod
    def of(cls, conv: nn.Conv2d, dtype: torch.dtype, inputs: Tensor) -> Geometry:
        """Returns those of a convolution of inputs [B, C, H, W] in ``dtype``."""
        bias_size = None if conv.bias is None else list(conv.bias.shape)
        by_winograd = takes_winograd(conv, dtype, inputs)
        return cls(conv.stride, conv.padding, conv.dilation, conv.groups, bias_size, dtype, by_winograd)


def activated_conv(inputs: Tensor, norm: nn.GroupNorm, conv: nn.Conv2d) -> Tensor:
    """Returns conv(silu(norm(x))) of inputs [B, C, H, W]; keeps the inputs and the groups' statistics."""
    dtype = autocast_dtype(inputs, conv.weight)
    return _ActivatedConv.apply(inputs, norm.weight, norm.bias, conv.weight, conv.bias, norm, conv, dtype)


def activate(inputs: Tensor, norm: nn.GroupNorm) -> tuple[Tensor, Tensor, Tensor]:
    """Returns silu(norm(x)) of inputs [B, C, H, W] and each group's mean and 1/σ [B, G], without autograd."""
    normalised, mean, rstd = normalise(inputs.to(computing_dtype(inputs, norm.weight)), norm)
    return F.silu(normalised, inplace=True), mean, rstd


def takes_winograd(conv: nn.Conv2d, dtype: torch.dtype, inputs: Tensor) -> bool:
    """Returns whether a convolution of [B, C, H, W] in ``dtype`` is one by Winograd: on a CPU alone."""
    followed = torch.compiler.is_compiling() or is_exporting()
    is_here = inputs.device.type == "cpu" and inputs.dtype == dtype == conv.weight.dtype
    is_wide = min(conv.in_channels, conv.out_channels) >= _LEAST_WINOGRAD_CHANNELS
    return is_here and is_wide and not followed and suits_winograd(conv, inputs)


def convolve(hidden: Tensor, conv: nn.Conv2d, dtype: torch.dtype) -> Tensor:
    """Returns conv(x), computed in ``dtype``; without autograd."""
    if takes_winograd(conv, dtype, hidden):
        return winograd_conv(hidden, winograd_weight(conv.weight), conv.bias).contiguous()
    bias = None if conv.bias is None else conv.bias.to(dtype)
    return conv._conv_forward(hidden.to(dtype), conv.weight.to(dtype), bias)


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
        ctx.geometry = Geometry.of(conv, dtype, hidden)
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
            sums = [add_gradients(*pair) for pair in zip(sums, of_parameters, strict=True)]
        return of_inputs, *sums, None, None, None


def activated_conv_gradients(
    gradient: Tensor,
    inputs: Tensor,
    statistics: Sequence[Tensor],
    parameters: Sequence[Tensor],
    geometry: Geometry,
    needed: list[bool],
) -> Gradients:
    """Returns the gradients of inputs, norm weight, norm bias, convolution weight and convolution bias.

    Args:
        gradient: [B, C', H', W'] of the output.
        inputs, statistics: what the forward pass kept; the latter are mean and 1/σ.
        parameters: the normalisation's weight and bias, and the convolution's weight.
        needed: which of the five gradients are needed.
    """
    (mean, rstd), (norm_weight, norm_bias, weight) = statistics, parameters
    computing = inputs.to(computing_dtype(inputs, norm_weight))
    normalised = normalise_again(computing, mean, rstd, norm_weight, norm_bias)
    activated = F.silu(normalised).to(geometry.dtype)
    wanted = [any(needed[:3]), *needed[3:]]
    slope, of_weight, of_bias = convolution_gradients(gradient, activated, weight, geometry, wanted)
    del activated
    of_norm: Gradients = (None, None, None)
    if slope is not None:
        slope = torch.ops.aten.silu_backward(slope.to(normalised.dtype), normalised)
        del normalised
        of_norm = normalisation_gradient(slope, computing, mean, rstd, norm_weight, needed[:3])
    of_inputs, *of_norm_parameters = of_norm
    of_conv = (None if g is None else g.to(weight.dtype) for g in (of_weight, of_bias))
    return None if of_inputs is None else of_inputs.to(inputs.dtype), *of_norm_parameters, *of_conv


def convolution_gradients(
    gradient: Tensor, hidden: Tensor, weight: Tensor, geometry: Geometry, needed: list[bool]
) -> Gradients:
    """Returns the gradients of a convolution's inputs, weight and bias, as far as they are ``needed``."""
    if not geometry.by_winograd:
        return torch.ops.aten.convolution_backward(
            gradient,
            hidden,
            weight.to(geometry.dtype),
            geometry.bias_size,
            geometry.stride,
            geometry.padding,
            geometry.dilation,
            False,
            [0, 0],
            geometry.groups,
            needed,
        )
    return (
        winograd_input_gradient(gradient, winograd_weight(weight)).contiguous() if needed[0] else None,
        winograd_weight_gradient(hidden, gradient).contiguous() if needed[1] else None,
        gradient.sum(dim=(0, 2, 3)) if needed[2] else None,
    )


# A whole residual block, so that its backward pass handles a few images at a time.


def residual(inputs: Tensor, layers: ResidualLayers, *, adds: bool, keeps_hidden: bool) -> Tensor:
    """Returns conv2(silu(norm2(conv1(silu(norm1(x)))))) of inputs [B, C, H, W], plus x if ``adds``.

    Args:
        layers: norm1, conv1, norm2, conv2; the convolutions keep height and width.
        keeps_hidden: keep the first convolution's output for the backward pass, in addition to x. Otherwise
            that convolution runs twice: a sixth more work for half of the memory.
    """
    dtype = autocast_dtype(inputs, layers[1].weight)
    parameters = [parameter for layer in layers for parameter in (layer.weight, layer.bias)]
    # If the output has another dtype than x, autograd adds them outside of the function.
    adds_inside = adds and inputs.dtype == dtype
    output: Tensor = _Residual.apply(inputs, *parameters, layers, dtype, adds_inside, keeps_hidden)
    return inputs + output if adds and not adds_inside else output


class _Residual(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, *arguments: Any) -> Tensor:
        *parameters, layers, dtype, adds, keeps_hidden = arguments
        norm1, conv1, norm2, conv2 = layers
        activated, *statistics1 = activate(inputs, norm1)
        hidden = convolve(activated, conv1, dtype)
        activated, *statistics2 = activate(hidden, norm2)
        output = convolve(activated, conv2, dtype)
        kept = hidden if keeps_hidden else None
        ctx.save_for_backward(inputs, kept, *statistics1, *statistics2, *parameters)
        geometries = (Geometry.of(conv1, dtype, inputs), Geometry.of(conv2, dtype, hidden))
        ctx.geometries, ctx.adds = geometries, adds
        ctx.conv1 = conv1
        return output.add_(inputs) if adds else output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Gradients:
        inputs, hidden, *saved = ctx.saved_tensors
        statistics, parameters = saved[:4], saved[4:]
        of_inputs = torch.empty_like(inputs) if ctx.needs_input_grad[0] else None
        sums: list[Tensor | None] = [None] * len(parameters)
        for part in split_batch(inputs):
            of_part, *of_parameters = _residual_gradients(
                ctx,
                gradient[part],
                inputs[part],
                None if hidden is None else hidden[part],
                [statistic[part] for statistic in statistics],
                parameters,
            )
            if of_inputs is not None and of_part is not None:
                of_inputs[part] = of_part.add_(gradient[part]) if ctx.adds else of_part
            sums = [add_gradients(*pair) for pair in zip(sums, of_parameters, strict=True)]
        return of_inputs, *sums, None, None, None, None


def _residual_gradients(
    ctx: Any,
    gradient: Tensor,
    inputs: Tensor,
    hidden: Tensor | None,
    statistics: list[Tensor],
    parameters: list[Tensor],
) -> Gradients:
    """Returns the gradients of the inputs and of each layer's weight and bias, for a part of the batch."""
    geometry1, geometry2 = ctx.geometries
    needed1, needed2 = list(ctx.needs_input_grad[:5]), list(ctx.needs_input_grad[5:9])
    if hidden is None:
        (mean, rstd), (weight, bias) = statistics[:2], parameters[:2]
        computing = inputs.to(computing_dtype(inputs, weight))
        activated = normalise_again(computing, mean, rstd, weight, bias)
        hidden = convolve(F.silu(activated, inplace=True), ctx.conv1, geometry1.dtype)
        del computing, activated
    of_hidden, *second = activated_conv_gradients(
        gradient, hidden, statistics[2:], parameters[4:7], geometry2, [any(needed1), *needed2]
    )
    del hidden
    if of_hidden is None:
        return (*[None] * 5, *second)
    first = activated_conv_gradients(of_hidden, inputs, statistics[:2], parameters[:3], geometry1, needed1)
    return (*first, *second)
