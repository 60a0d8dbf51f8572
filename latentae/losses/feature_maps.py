"""Frozen networks that map images to features.

``FeatureMaps`` have those of one layer, which latents are aligned with. ``ConvolutionalLayers`` and
``TransformerLayers`` have those of several layers, on which a discriminator puts heads.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of RGB images in [0, 1]."""

# Widths of VGG16's convolutions, in stages with a pooling that halves before all but the first.
_VGG_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# Of each classifier, the ReLUs that end the last four of the five stages that LPIPS compares.
_TAPS = {"alex": ("alexnet", (4, 7, 9, 11)), "vgg": ("vgg16", (8, 15, 22, 29))}
_LONGEST_SIDE = 16  # of a transformer's grid, in patches


class FrozenNetwork(nn.Module):
    """The base of frozen networks trained on ImageNet's images. They are always in evaluation mode.

    Attributes:
        precision: ``float32``, or ``bfloat16`` under autocast, which keeps sensitive operations in float32.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, precision: str = "float32") -> None:
        super().__init__()
        if precision not in _PRECISIONS:
            raise ValueError(f"precision is {precision!r}: choose one of {', '.join(_PRECISIONS)}")
        self.precision = precision
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)

    def autocast(self, device_type: str) -> torch.autocast:
        """Returns a context in which the network computes in its precision, whatever surrounds it."""
        dtype = _PRECISIONS[self.precision]
        return torch.autocast(device_type, dtype, enabled=dtype != torch.float32)

    def freeze(self) -> None:
        """Freezes the weights. A subclass calls it after it has built its network.

        Weights of layers that compute in a lower precision are stored in it. Autocast gives the same numbers,
        but would cast the frozen weights at each call.
        """
        self.requires_grad_(False).eval()
        if self.precision != "float32":
            for layer in self.modules():
                if isinstance(layer, nn.Linear | nn.Conv2d):
                    layer.to(_PRECISIONS[self.precision])

    def normalised(self, images: Tensor) -> Tensor:
        """Normalises images as networks trained on ImageNet expect."""
        return ((images + 1) / 2 - self.mean) / self.std

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode."""
        return super().train(False)


class FeatureMaps(FrozenNetwork):
    """The base of both networks that latents are aligned with.

    Attributes:
        channels: d, the length of a position's features.
    """

    channels: int

    @torch.no_grad()
    def forward(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """Returns features [B, d, *size], in the images' type, of RGB images [B, 3, H, W] in [−1, 1]."""
        with self.autocast(images.device.type):
            features = self.features(images, size).to(images.dtype)
        return resize(features, size)

    def features(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """Returns features in a grid that suits the network, near ``size``."""
        raise NotImplementedError


class VGG16Maps(FeatureMaps):
    """The deepest of VGG16's five stages whose positions are not larger than a latent.

    It needs no download beyond the perceptual loss's. A classifier of 2014 is no substitute for DINOv2, which
    the paper measured, but it shows that a run works.

    Args:
        trunk: the convolutions, as ``latentae.weights.load_trunk("vgg")`` returns them.
        factor: pixels per latent along each side.
        precision: as in ``FeatureMaps``.
    """

    def __init__(self, trunk: dict[str, Tensor], factor: int, precision: str = "float32") -> None:
        super().__init__(precision)
        stages = _VGG_STAGES[: max(1, min(factor.bit_length(), len(_VGG_STAGES)))]
        self.channels = stages[-1][-1]
        layers: list[nn.Module] = []
        for stage in stages:
            if layers:
                layers.append(nn.MaxPool2d(2))
            for width in stage:
                weight, bias = (trunk[f"features.{len(layers)}.{part}"] for part in ("weight", "bias"))
                convolution = nn.Conv2d(weight.shape[1], width, 3, padding=1)
                convolution.load_state_dict({"weight": weight, "bias": bias})
                layers += [convolution, nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.freeze()

    def features(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """Returns the features of the images at their own size."""
        return self.layers(self.normalised(images))


class ViTMaps(FeatureMaps):
    """The last layer's patch tokens of a vision transformer such as DINOv2, one patch per latent.

    Images are resized so that patches and latents coincide, in a grid of at most 16 along the longer side
    (224 pixels with patches of 14, as in VA-VAE's program); beyond that the features are interpolated.

    Args:
        model: a transformers model with ``config.patch_size`` and ``config.hidden_size``, called with
            ``pixel_values``.
        precision: as in ``FeatureMaps``.

    Raises:
        ValueError: a model that has no such patches.
    """

    def __init__(self, model: Any, precision: str = "float32") -> None:
        super().__init__(precision)
        self.patch, self.channels = _patches_of(model)
        self.model = model
        self.any_size = _any_size_option(model)
        self.freeze()

    def features(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """Returns the features of images resized to whole patches."""
        height, width = _grid_of_patches(size)
        resized = resize(images, (height * self.patch, width * self.patch))
        tokens = self.model(pixel_values=self.normalised(resized), **self.any_size).last_hidden_state
        return _to_map(tokens, height, width)


class ConvolutionalLayers(FrozenNetwork):
    """Four layers of an ImageNet classifier: relu2_2, 3_3, 4_3 and 5_3 of VGG16, relu2 to relu5 of AlexNet.

    Gradients pass through it to the images, and may be differentiated again. It computes in its inputs'
    type, or in that of a surrounding autocast.

    Args:
        trunk: the convolutions, as ``latentae.weights.load_trunk(net)`` returns them.
        net: ``alex`` or ``vgg``.

    Attributes:
        channels: of each layer's features.
        windows: (size, stride) of the poolings between each layer and the deepest one.

    Raises:
        ValueError: no such ``net``, or ``trunk`` is not the weights of that network.
    """

    def __init__(self, trunk: dict[str, Tensor], net: str = "vgg") -> None:
        super().__init__()
        if net not in _TAPS:
            raise ValueError(f"net is {net!r}: choose one of {', '.join(_TAPS)}")
        import torchvision.models  # takes a second to import, and few runs need it

        name, taps = _TAPS[net]
        with torch.device("meta"):
            layers = getattr(torchvision.models, name)(weights=None).features[: taps[-1] + 1]
        state = {name.removeprefix("features."): value.clone() for name, value in trunk.items()}
        try:
            layers.load_state_dict(state, assign=True)
        except RuntimeError as error:
            raise ValueError(
                f"trunk does not hold the convolutions of net={net!r}: give "
                f"latentae.weights.load_trunk({net!r})"
            ) from error
        self.layers = layers
        self._taps = set(taps)
        widths: list[int] = []
        poolings: list[tuple[int, tuple[Any, Any]]] = []
        for index, layer in enumerate(layers):
            widths += [layer.out_channels] if isinstance(layer, nn.Conv2d) else widths[-1:]
            if isinstance(layer, nn.MaxPool2d):
                poolings.append((index, (layer.kernel_size, layer.stride)))
        self.channels = tuple(widths[tap] for tap in taps)
        self.windows = tuple(tuple(window for place, window in poolings if place > tap) for tap in taps)
        self.freeze()

    def forward(self, images: Tensor) -> list[Tensor]:
        """Returns the features [B, C_l, h_l, w_l] of each layer, of RGB images [B, 3, H, W] in [−1, 1]."""
        hidden, features = self.normalised(images), []
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden)
            if index in self._taps:
                features.append(hidden)
        return features


class TransformerLayers(FrozenNetwork):
    """The patch tokens of a vision transformer after each quarter of its blocks (3, 6, 9, 12 of a DINO-S).

    Images are resized to whole patches: at least as many as they have, and at most 16 along the longer side
    (224 pixels with patches of 14, as in RAE). Class and register tokens are left out. Attention is computed
    without a fused kernel, since those cannot be differentiated twice, as R1 does.

    Args:
        model: a transformers model with ``config.patch_size``, ``config.hidden_size`` and
            ``config.num_hidden_layers``, called with ``pixel_values``.

    Attributes:
        channels, windows: as in ``ConvolutionalLayers``; all layers have the same grid.

    Raises:
        ValueError: a model that has no square patches.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.patch, width = _patches_of(model)
        blocks = model.config.num_hidden_layers
        self.blocks = tuple(dict.fromkeys(math.ceil(blocks * quarter / 4) for quarter in range(1, 5)))
        self.channels = (width,) * len(self.blocks)
        self.windows: tuple[tuple[tuple[int, int], ...], ...] = ((),) * len(self.blocks)
        model.set_attn_implementation("eager")
        if getattr(model, "pooler", None) is not None:
            # No feature needs it. DINO's files lack its weights, which transformers then draws at random.
            model.pooler = None
        self.model = model
        self.any_size = _any_size_option(model)
        self.freeze()

    def forward(self, images: Tensor) -> list[Tensor]:
        """Returns the features [B, C, h, w] of each layer, of RGB images [B, 3, H, W] in [−1, 1]."""
        height, width = _grid_of_patches([math.ceil(side / self.patch) for side in images.shape[-2:]])
        resized = resize(images, (height * self.patch, width * self.patch))
        pixels = self.normalised(resized)
        output = self.model(pixel_values=pixels, output_hidden_states=True, **self.any_size)
        return [_to_map(output.hidden_states[block], height, width) for block in self.blocks]


def _grid_of_patches(grid: Sequence[int]) -> tuple[int, int]:
    """Returns the (rows, columns) of a grid, or proportionally fewer, at most 16 along the longer side."""
    shrink = min(1.0, _LONGEST_SIDE / max(grid))
    rows, columns = (max(1, round(side * shrink)) for side in grid)
    return rows, columns


def _to_map(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """Returns the patches' tokens as [B, d, rows, columns]; class and register tokens come before them."""
    return tokens[:, -rows * columns :].transpose(1, 2).unflatten(2, (rows, columns))


def _patches_of(model: Any) -> tuple[int, int]:
    """Returns a vision transformer's pixels per patch side, and the length of its tokens.

    Raises:
        ValueError: a model that has no square patches.
    """
    patch, channels = (getattr(model.config, name, None) for name in ("patch_size", "hidden_size"))
    if not isinstance(patch, int) or not isinstance(channels, int):
        raise ValueError(
            f"{type(model).__name__} has no square patches: give a vision transformer such as DINOv2"
        )
    return patch, channels


def _any_size_option(model: Any) -> dict[str, bool]:
    """Returns the argument that lets a vision transformer take images of any size.

    A ViT, such as the first DINO, refuses other sizes than it was trained on unless it is told to interpolate
    its position embeddings. DINOv2 always does so, and has no such argument: then the result is empty.
    """
    option = "interpolate_pos_encoding"
    return {option: True} if option in inspect.signature(model.forward).parameters else {}


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes images or latents [B, C, H, W] to another height and width.

    The values are those of ``F.interpolate(mode="bilinear", antialias=True)``. Its gradient has no
    deterministic kernel on CUDA, but matrix products have one. Downsampling applies a low-pass filter, so
    nothing aliases.

    Args:
        images: of any floating-point type; calculated in float32 or better, returned in theirs.
        size: (height, width) of the result, 1 or more each.
    """
    height, width = images.shape[-2:]
    if (height, width) == size:
        return images
    with torch.autocast(images.device.type, enabled=False):
        values = images.to(torch.promote_types(images.dtype, torch.float32))
        rows, columns = (
            _resize_weights(before, after, values) for before, after in ((height, size[0]), (width, size[1]))
        )
        return (rows @ values @ columns.T).to(images.dtype)


def _resize_weights(before: int, after: int, like: Tensor) -> Tensor:
    """Returns [after, before]: the weight of each old position in each new one. Rows sum to 1."""
    places = torch.arange(max(before, after), dtype=like.dtype, device=like.device) + 0.5
    ratio = before / after
    distance = places[:before] - places[:after, None] * ratio
    weights = (1 - distance.abs() / max(ratio, 1.0)).clamp_min(0)
    return weights / weights.sum(dim=1, keepdim=True)
