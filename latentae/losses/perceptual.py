"""LPIPS, the learned perceptual distance (Zhang et al. 2018, arXiv 1801.03924), as a training loss."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input

from latentae.devices import is_traced
from latentae.winograd import suits_winograd, winograd_conv, winograd_input_gradient, winograd_weight

MINIMUM_SIZE = {"alex": 31, "vgg": 16}
"""Pixels per side of the smallest images that the trunk's strides and poolings leave something of."""

_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class LPIPS(nn.Module):
    """The distance of the `lpips` package (version 0.1 of its heads), differentiable in the reconstruction.

    With y_l, ŷ_l the unit-normalised features of layer l of a frozen ImageNet classifier and w_l ≥ 0 the
    learned heads: d = Σ_l 1/(H_l W_l) Σ_hw Σ_c w_lc (ŷ_lchw − y_lchw)². Equal to `lpips.LPIPS` in value and
    gradient, except where all of a pixel's features are zero: there `lpips` differentiates √0 and yields NaN,
    this yields zero.

    The module is frozen and always in evaluation mode. It computes in float32 (in float64 after `.double()`),
    whatever the inputs' type, also under autocast. Call it under `torch.no_grad()` to measure. It can be
    differentiated once.

    Args:
        trunk: the classifier's convolutions under torchvision's names (`features.i.weight`,
            `features.i.bias`), as `latentae.weights.load_trunk` returns them.
        net: the classifier: `alex` (the usual choice for measuring) or `vgg` (the usual choice for training).
        chunk: RGB images per pass through the network; None: all. Values and gradients are the same, since
            images do not mix. The memory is that of one chunk: if a gradient is needed, it is computed with
            the value, and nothing else is kept.
        precision: what the classifier computes in. The distance between its features is float32. Use
            `bfloat16` for training only: it rounds gradients, and its values cannot be compared with others.

    Raises:
        ValueError: no such `net` or `precision`, `trunk` is not the weights of that network, or `chunk` is
            below 1.
    """

    def __init__(
        self,
        trunk: dict[str, Tensor],
        net: str = "alex",
        *,
        chunk: int | None = None,
        precision: str = "float32",
    ) -> None:
        super().__init__()
        if net not in MINIMUM_SIZE:
            raise ValueError(f"net is {net!r}: choose one of {', '.join(MINIMUM_SIZE)}")
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk is {chunk}: give a positive number of images, or None for all at once")
        if precision not in _PRECISIONS:
            raise ValueError(f"precision is {precision!r}: choose one of {', '.join(_PRECISIONS)}")
        self.net = net
        self.precision = precision
        self.chunk = chunk
        reference = _load_reference(trunk, net)
        self.scaling = reference.scaling_layer
        trunk_slices = reference.net
        self.slices = nn.ModuleList([getattr(trunk_slices, f"slice{k}") for k in range(1, 6)])
        self.heads = nn.ParameterList([head.model[-1].weight.detach().flatten() for head in reference.lins])
        self.requires_grad_(False)
        self.eval()
        self._passes = (distance, distance_and_gradient)
        if precision != "float32":
            # In the memory order that matrix units work in: on a CPU that has them several times as fast.
            self.slices.to(_PRECISIONS[precision]).to(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode, whatever `mode` is."""
        return super().train(False)

    def use_winograd(self) -> int:
        """Makes the wide convolutions take 4/9 of the multiplications; values change by rounding alone.

        It is made for a CPU, in float32. The rearranged weights stay beside the trunk's: 1.8 times theirs.

        Returns:
            the number of convolutions it concerns.
        """
        convs = [layer for layer in self.slices.modules() if _can_be_winograd(layer)]
        for conv in convs:
            conv.__class__ = _WinogradConv2d
        if convs:
            self.slices.to(memory_format=torch.channels_last)  # the order that it works in
        return len(convs)

    def compile_passes(self, **options: Any) -> None:
        """Compiles the pass that measures and the pass that also differentiates, each at its first call.

        Args:
            options: of `torch.compile`.
        """
        measure, differentiate = self._passes
        self._passes = (torch.compile(measure, **options), torch.compile(differentiate, **options))

    def forward(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """Returns the distance of each image of a batch.

        One channel is grey and is repeated to three; two channels are two grey images; three are RGB. More
        channels are split into ⌈C/3⌉ evenly spaced triples of neighbouring channels, which may overlap; each
        is treated as RGB. The distance is the mean over these images, and the cost is proportional to their
        number.

        Args:
            reconstruction: [B, C, H, W] in [-1, 1]. Values outside are used as they are, since clamping would
                remove their gradient. Clamp before measuring.
            target: as `reconstruction`. Its features are computed without a gradient.

        Returns:
            [B], float32 (float64 after `.double()`): 0 for equal images, about 1 for unrelated ones.

        Raises:
            ValueError: the shapes differ or are not [B, C, H, W], the images are too small for the trunk or
                not of floating-point type, the target asks for a gradient, or the module was cast to half
                precision.
        """
        self._validate(reconstruction, target)
        dtype = self.heads[0].dtype
        with torch.autocast(device_type=reconstruction.device.type, enabled=False):
            images, references = (self.scaling(as_rgb(batch.to(dtype))) for batch in (reconstruction, target))
            distances: Tensor = _Distance.apply(images, references, self)
        return distances.reshape(reconstruction.shape[0], -1).mean(dim=1)

    def _validate(self, reconstruction: Tensor, target: Tensor) -> None:
        shape = tuple(reconstruction.shape)
        if len(shape) != 4 or 0 in shape or shape != tuple(target.shape):
            raise ValueError(
                f"reconstruction and target have shapes {shape} and {tuple(target.shape)}: "
                "give two non-empty batches of the same shape [B, C, H, W]"
            )
        minimum = MINIMUM_SIZE[self.net]
        if min(shape[2:]) < minimum:
            raise ValueError(
                f"images are {shape[2]} x {shape[3]}: "
                f"LPIPS on {self.net!r} needs at least {minimum} pixels a side"
            )
        if not (reconstruction.is_floating_point() and target.is_floating_point()):
            raise ValueError(
                f"images are of type {reconstruction.dtype}, {target.dtype}: convert them to floats"
            )
        if target.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                "target requires a gradient, but only the reconstruction gets one: detach the target"
            )
        if (dtype := self.heads[0].dtype) not in (torch.float32, torch.float64):
            raise ValueError(f"LPIPS was cast to {dtype}: keep it in float32, it casts its inputs itself")


class _WinogradConv2d(nn.Conv2d):
    """A frozen 3×3 convolution with fewer multiplications, and its backward pass."""

    _matrices: Tensor | None = None

    @property
    def matrices(self) -> Tensor:
        """The rearranged weights, made when they are first needed."""
        if self._matrices is None or self._matrices.dtype != self.weight.dtype:
            self._matrices = winograd_weight(self.weight)
        return self._matrices

    def does_suit(self, values: Tensor) -> bool:
        """Whether the faster way is to be taken for these inputs, or gradients of outputs."""
        followed = torch.compiler.is_compiling() or is_traced()
        return values.device.type == "cpu" and not followed and suits_winograd(self, values)

    def forward(self, input: Tensor) -> Tensor:
        """Maps [B, C, H, W] to [B, C', H, W]."""
        if self.does_suit(input):
            return winograd_conv(input, self.matrices, self.bias)
        return super().forward(input)


def _can_be_winograd(layer: nn.Module) -> bool:
    """Returns whether a layer is a 3×3 convolution wide enough to gain, whatever the size of the images."""
    return type(layer) is nn.Conv2d and suits_winograd(layer, torch.empty(1, 1, 1024, 1024, device="meta"))


class _Distance(torch.autograd.Function):
    """Computes the distance [B] chunk by chunk, with its gradient if one is needed."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, target: Tensor, lpips: LPIPS) -> Tensor:
        chunks = zip(*(batch.split(lpips.chunk or len(batch)) for batch in (images, target)), strict=True)
        measure, differentiate = lpips._passes
        network = (cast(Slices, [*lpips.slices]), [*lpips.heads])
        if not ctx.needs_input_grad[0]:
            return torch.cat([measure(*network, *chunk) for chunk in chunks])
        # An image's distance depends on that image alone: the gradient of the sum is each one's own.
        distances, gradients = zip(*(differentiate(*network, *chunk) for chunk in chunks), strict=True)
        ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(distances)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (own,) = ctx.saved_tensors
        return own * gradient[:, None, None, None], None, None


def as_rgb(images: Tensor) -> Tensor:
    """Returns [B·G, 3, H, W] of [B, C, H, W], the G RGB images of a batch item next to each other."""
    batch, channels, height, width = images.shape
    if channels == 3:
        return images
    if channels < 3:
        return images.reshape(batch * channels, 1, height, width).expand(-1, 3, -1, -1)
    groups = -(-channels // 3)
    starts = [round(k * (channels - 3) / (groups - 1)) for k in range(groups)]
    return torch.stack([images[:, start : start + 3] for start in starts], dim=1).flatten(0, 1)


def _load_reference(trunk: dict[str, Tensor], net: str) -> Any:
    """An `lpips.LPIPS` with this trunk and the package's heads, built without touching the random state."""
    import lpips  # imports for seconds: only where it is needed

    with warnings.catch_warnings(), torch.device("meta"):
        warnings.filterwarnings("ignore", category=UserWarning)  # of torchvision: lpips' arguments are old
        reference = lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False)
    reference.scaling_layer = lpips.ScalingLayer()
    heads_file = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth"
    state = torch.load(heads_file, map_location="cpu", weights_only=True)
    names = {f"features.{key.split('.', 1)[1]}": f"net.{key}" for key in reference.net.state_dict()}
    expected = {name: reference.state_dict()[key].shape for name, key in names.items()}
    if {name: tensor.shape for name, tensor in trunk.items()} != expected:
        raise ValueError(
            f"trunk does not hold the convolutions of net={net!r}: give latentae.weights.load_trunk({net!r})"
        )
    state |= {
        names[name]: tensor.detach().to("cpu", torch.float32, copy=True) for name, tensor in trunk.items()
    }
    state |= {f"scaling_layer.{name}": buffer for name, buffer in reference.scaling_layer.named_buffers()}
    # Not strict, since lpips holds each head under two names of which its file has one.
    reference.load_state_dict(state, strict=False, assign=True)
    assert not any(parameter.is_meta for parameter in reference.parameters())
    return reference


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
    """Returns `distance` and its gradient in the images, [B] and [B, 3, H, W]. Autograd does not record it.

    It goes through the network once in each direction, as autograd would, but keeps less in between: a
    convolution with frozen weights needs no input for its backward pass; a ReLU before a pooling needs only
    where the pooled values are positive; and the derivative in the features is known as soon as they are
    compared, so it is stored in the place of their difference.
    """
    directions = _directions(slices, target)
    hidden, total = _as_weights(slices, images), torch.zeros_like(images[:, 0, 0, 0])
    # Forward: each layer leaves its backward function on the tape, and the end of each slice adds the
    # derivative of the distance in its features.
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
    # Backward: the gradient passes through the tape from its end. Each function frees what it kept.
    gradient = torch.zeros_like(hidden[0, 0, 0, 0])
    del hidden
    while tape:
        gradient = tape.pop()(gradient)
    return total, gradient.to(images.dtype)


def feature_distance(
    features: Tensor, direction: Tensor, head: Tensor
) -> tuple[Tensor, Callable[[], Tensor]]:
    """Returns d = 1/(HW) Σ_hw Σ_c w_c (f_c/(|f| + ε) − y_c)² of each image, [B], and a function for ∂d/∂f.

    The derivative is finite at f = 0. It is 0 where f is not positive: f is the output of a ReLU, whose own
    derivative is included.

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
    """Returns the unit-normalised features of all slices, in the images' type, the last slice first."""
    hidden, directions = _as_weights(slices, images), []
    for layers in slices:
        hidden = layers(hidden)
        directions.append(hidden.to(images.dtype))
    return [features.mul_(_inverse_norm(features)[1]) for features in directions[::-1]]


def _inverse_norm(features: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the length s of each pixel's feature vector, and 1/(s + ε): [B, 1, H, W] each."""
    norm = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    return norm, (norm + _EPSILON).reciprocal()


def _as_weights(slices: Slices, values: Tensor) -> Tensor:
    """Casts values to the type of the network's weights; a cast also sets channels-last order."""
    weight = next(slices[0].parameters())
    if values.dtype == weight.dtype:
        return values
    return values.to(weight.dtype, memory_format=torch.channels_last)


def _forward(layer: nn.Module, values: Tensor, following: nn.Module | None) -> tuple[Tensor, _Backward]:
    """Returns a layer's output and its backward function. A ReLU works in place."""
    if isinstance(layer, nn.Conv2d):
        return layer(values), partial(_through_convolution, layer, values.shape)
    if isinstance(layer, nn.ReLU):
        output = F.relu_(values)
        # If no layer in between mixes them, only features that were positive receive gradients.
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
    if isinstance(layer, _WinogradConv2d) and layer.does_suit(gradient):
        return winograd_input_gradient(gradient, layer.matrices)
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
    """Zeroes the gradient, in place, where values are not positive."""
    return torch.ops.aten.threshold_backward.grad_input(gradient, values, 0, grad_input=gradient)
