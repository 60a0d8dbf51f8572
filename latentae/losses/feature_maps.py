"""Frozen networks that map images to features, which latents are aligned with."""

from __future__ import annotations

import inspect
from typing import Any, Self

import torch
from torch import Tensor, nn

from latentae.losses.resizing import resize

_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's images in [0, 1]
# Widths of VGG16's convolutions, in stages with a pooling that halves before all but the first.
_VGG_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


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
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(_STD)[:, None, None], persistent=False)

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

    longest_side = 16

    def __init__(self, model: Any, precision: str = "float32") -> None:
        super().__init__(precision)
        self.patch, self.channels = patches_of(model)
        self.model = model
        self.any_size = any_size_option(model)
        self.freeze()

    def features(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """Returns the features of images resized to whole patches."""
        shrink = min(1.0, self.longest_side / max(size))
        height, width = (max(1, round(side * shrink)) for side in size)
        resized = resize(images, (height * self.patch, width * self.patch))
        tokens = self.model(pixel_values=self.normalised(resized), **self.any_size).last_hidden_state
        # Class and register tokens come first.
        patches = tokens[:, -height * width :]
        return patches.transpose(1, 2).unflatten(2, (height, width))


def patches_of(model: Any) -> tuple[int, int]:
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


def any_size_option(model: Any) -> dict[str, bool]:
    """Returns the argument that lets a vision transformer take images of any size.

    A ViT, such as the first DINO, refuses other sizes than it was trained on unless it is told to interpolate
    its position embeddings. DINOv2 always does so, and has no such argument: then the result is empty.
    """
    option = "interpolate_pos_encoding"
    return {option: True} if option in inspect.signature(model.forward).parameters else {}
