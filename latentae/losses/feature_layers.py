"""Frozen networks that map images to the features of several layers, on which a discriminator puts heads."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from latentae.losses.feature_maps import FrozenNetwork, any_size_option, patches_of
from latentae.losses.resizing import resize

# Of each classifier, the ReLUs that end the last four of the five stages that LPIPS compares.
_TAPS = {"alex": ("alexnet", (4, 7, 9, 11)), "vgg": ("vgg16", (8, 15, 22, 29))}


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

    longest_side = 16

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.patch, width = patches_of(model)
        blocks = model.config.num_hidden_layers
        self.blocks = tuple(dict.fromkeys(math.ceil(blocks * quarter / 4) for quarter in range(1, 5)))
        self.channels = (width,) * len(self.blocks)
        self.windows: tuple[tuple[tuple[int, int], ...], ...] = ((),) * len(self.blocks)
        model.set_attn_implementation("eager")
        if getattr(model, "pooler", None) is not None:
            # No feature needs it. DINO's files lack its weights, which transformers then draws at random.
            model.pooler = None
        self.model = model
        self.any_size = any_size_option(model)
        self.freeze()

    def forward(self, images: Tensor) -> list[Tensor]:
        """Returns the features [B, C, h, w] of each layer, of RGB images [B, 3, H, W] in [−1, 1]."""
        grid = [math.ceil(side / self.patch) for side in images.shape[-2:]]
        shrink = min(1.0, self.longest_side / max(grid))
        height, width = (max(1, round(side * shrink)) for side in grid)
        resized = resize(images, (height * self.patch, width * self.patch))
        pixels = self.normalised(resized)
        output = self.model(pixel_values=pixels, output_hidden_states=True, **self.any_size)
        return [
            output.hidden_states[block][:, -height * width :].transpose(1, 2).unflatten(2, (height, width))
            for block in self.blocks
        ]
