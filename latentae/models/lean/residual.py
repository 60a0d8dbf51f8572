"""A residual block as one function: it is taken backwards a few images at a time."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from latentae.models.lean.activated import (
    Geometry,
    Gradients,
    activate,
    activated_conv_gradients,
    convolution_dtype,
    convolve,
)
from latentae.models.lean.normalisation import computing_dtype, normalise_again
from latentae.models.lean.parts import plus, split_batch

Layers = tuple[nn.GroupNorm, nn.Conv2d, nn.GroupNorm, nn.Conv2d]


def residual(inputs: Tensor, layers: Layers, *, adds: bool, keeps_hidden: bool) -> Tensor:
    """conv2(silu(norm2(conv1(silu(norm1(x)))))) of inputs [B, C, H, W], plus x if ``adds``.

    It can be differentiated once. Hooks of the layers are not called.

    Args:
        layers: norm1, conv1, norm2, conv2; the convolutions keep height and width.
        keeps_hidden: whether the first convolution's output is kept for the backward pass, beside x. Without,
            that convolution is done twice: a sixth more work for half of the memory.
    """
    dtype = convolution_dtype(inputs, layers[1])
    parameters = [parameter for layer in layers for parameter in (layer.weight, layer.bias)]
    # Where the sum is in another dtype than x, it is not ours to make.
    own = adds and inputs.dtype == dtype
    output: Tensor = _Residual.apply(inputs, *parameters, layers, dtype, own, keeps_hidden)
    return inputs + output if adds and not own else output


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
        ctx.geometries, ctx.adds = (Geometry.of(conv1, dtype), Geometry.of(conv2, dtype)), adds
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
            of_part, *of_parameters = _part_gradients(
                ctx,
                gradient[part],
                inputs[part],
                None if hidden is None else hidden[part],
                [statistic[part] for statistic in statistics],
                parameters,
            )
            if of_inputs is not None and of_part is not None:
                of_inputs[part] = of_part.add_(gradient[part]) if ctx.adds else of_part
            sums = [plus(*pair) for pair in zip(sums, of_parameters, strict=True)]
        return of_inputs, *sums, None, None, None, None


def _part_gradients(
    ctx: Any,
    gradient: Tensor,
    inputs: Tensor,
    hidden: Tensor | None,
    statistics: list[Tensor],
    parameters: list[Tensor],
) -> Gradients:
    """Gradients of the inputs and of the layers' weights and biases in turn."""
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
