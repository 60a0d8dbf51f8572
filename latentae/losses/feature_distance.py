"""The sum that LPIPS is, and its gradient in the same pass: a network that never learns keeps little."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

_EPSILON = 1e-10  # of the `lpips` package's normalisation

Slices = Sequence[nn.Sequential]
"""Of convolutions, ReLUs and max-poolings. A ReLU is the last of each: what it puts out are the features."""
_Backward = Callable[[Tensor], Tensor]


def distance(slices: Slices, heads: Sequence[Tensor], images: Tensor, target: Tensor) -> Tensor:
    """d = Σ_l 1/(H_l W_l) Σ_hw Σ_c w_lc (ŷ_lchw − y_lchw)² of each image, [B].

    ŷ_l and y_l are the unit-normalised features of slice l. The slices compute in their weights' type, all
    else in the images'.

    Args:
        slices: the network.
        heads: w_l, [C_l] for each slice, not negative.
        images: [B, 3, H, W], as the first convolution takes them.
        target: as ``images``.
    """
    directions = _directions(slices, target)
    hidden, total = _as_weights(slices, images), torch.zeros_like(images[:, 0, 0, 0])
    for layers, head in zip(slices, heads, strict=True):
        hidden = layers(hidden)
        total += feature_distance(hidden.to(images.dtype), directions.pop(), head)[0]
    return total


def distance_and_gradient(
    slices: Slices, heads: Sequence[Tensor], images: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    """`distance` and its gradient in the images, [B] and [B, 3, H, W]. It takes no part in autograd.

    What the derivative is in the features is known as soon as they were measured, and takes their place. Of a
    convolution with frozen weights the way back needs no input, and of a ReLU before a pooling no more than
    where the pooled values are positive.
    """
    directions = _directions(slices, target)
    hidden, total = _as_weights(slices, images), torch.zeros_like(images[:, 0, 0, 0])
    tape: list[_Backward] = []
    layers = [layer for slice_ in slices for layer in slice_]
    ends, heads = {slice_[-1] for slice_ in slices}, [*heads][::-1]
    for layer, following in zip(layers, [*layers[1:], None], strict=True):
        hidden, backward = _forward(layer, hidden, following)
        tape.append(backward)
        if layer in ends:
            features = hidden.to(images.dtype)
            value, differentiate = feature_distance(features, directions.pop(), heads.pop())
            total += value
            tape.append(_as_weights(slices, differentiate()).add_)
            del features, differentiate
    gradient = torch.zeros_like(hidden[0, 0, 0, 0])
    del hidden
    while tape:
        gradient = tape.pop()(gradient)
    return total, gradient.to(images.dtype)


def feature_distance(
    features: Tensor, direction: Tensor, head: Tensor
) -> tuple[Tensor, Callable[[], Tensor]]:
    """d = 1/(HW) Σ_hw Σ_c w_c (f_c/(|f| + ε) − y_c)² of each image, [B], and what then gives ∂d/∂f.

    The derivative is finite at f = 0, and 0 where f is not positive: that is what a ReLU has put out, whose
    own derivative is so in it.

    Args:
        features: f, [B, C, H, W].
        direction: unit vectors y, as ``features``. Difference and derivative are written over it.
        head: w, [C].
    """
    norm, inverse = _inverse_norm(features)
    difference = direction.sub_(features * inverse)
    # Summing over space before weighting the channels reads the large tensor once.
    squares = torch.linalg.vector_norm(difference, dim=(2, 3)).square()
    weights = head / (features.shape[2] * features.shape[3])

    def differentiate() -> Tensor:
        # g = ∂d/∂(f·r) with r = 1/(|f| + ε); then ∂d/∂f = r g − (r²/|f|) (g·f) f
        gradient = difference.mul_(-2 * weights[:, None, None])
        projection = (gradient * features).sum(dim=1, keepdim=True)
        along = projection * inverse * inverse / norm.clamp_min(torch.finfo(norm.dtype).tiny)
        return _where_positive(gradient.mul_(inverse).addcmul_(features, along, value=-1), features)

    return squares @ weights, differentiate


def _directions(slices: Slices, images: Tensor) -> list[Tensor]:
    """The unit-normalised features of all slices, in the images' type, the last slice's first."""
    hidden, directions = _as_weights(slices, images), []
    for layers in slices:
        hidden = layers(hidden)
        directions.append(hidden.to(images.dtype))
    return [features.mul_(_inverse_norm(features)[1]) for features in directions[::-1]]


def _inverse_norm(features: Tensor) -> tuple[Tensor, Tensor]:
    """The length s of each pixel's feature vector and 1/(s + ε): [B, 1, H, W] each."""
    norm = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    return norm, (norm + _EPSILON).reciprocal()


def _as_weights(slices: Slices, values: Tensor) -> Tensor:
    """Values in the type of the network's weights, and then in their memory order."""
    weight = next(slices[0].parameters())
    if values.dtype == weight.dtype:
        return values
    return values.to(weight.dtype, memory_format=torch.channels_last)


def _forward(layer: nn.Module, values: Tensor, following: nn.Module | None) -> tuple[Tensor, _Backward]:
    """What a layer puts out, and the way back through it; a ReLU writes over its values."""
    if isinstance(layer, nn.Conv2d):
        return layer(values), partial(_through_convolution, layer, values.shape)
    if isinstance(layer, nn.ReLU):
        output = F.relu_(values)
        # Without a layer that could mix them, gradients come back to features that were positive alone.
        kept = output if isinstance(following, nn.Conv2d) else None
        return output, partial(_through_relu, kept)
    if not isinstance(layer, nn.MaxPool2d):
        raise TypeError(
            f"the network has a {type(layer).__name__}: give convolutions, ReLUs and max-poolings"
        )
    window = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode)
    output, indices = F.max_pool2d(values, *window, return_indices=True)
    shape = torch.empty_like(values, device="meta")  # and the memory order
    return output, partial(_through_pooling, window, shape, indices, output > 0)


def _through_convolution(layer: nn.Conv2d, shape: torch.Size, gradient: Tensor) -> Tensor:
    geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
    return conv2d_input(shape, layer.weight, gradient, *geometry)


def _through_relu(output: Tensor | None, gradient: Tensor) -> Tensor:
    return gradient if output is None else _where_positive(gradient, output)


def _through_pooling(
    window: tuple[Any, ...], shape: Tensor, indices: Tensor, positive: Tensor, gradient: Tensor
) -> Tensor:
    *numbers, ceil_mode = window
    lists = [[value, value] if isinstance(value, int) else [*value] for value in numbers]
    # Of the input the shape and the memory order are read, not its values.
    inputs = torch.empty_like(shape, device=gradient.device)
    return torch.ops.aten.max_pool2d_with_indices_backward(
        gradient.mul_(positive), inputs, *lists, ceil_mode, indices
    )


def _where_positive(gradient: Tensor, values: Tensor) -> Tensor:
    """The gradient with zeros where values are not positive, in place."""
    return torch.ops.aten.threshold_backward.grad_input(gradient, values, 0, grad_input=gradient)
