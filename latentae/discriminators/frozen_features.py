"""A discriminator of a frozen network's features (Projected GAN, Sauer et al. 2021, arXiv 2111.01007).

Its heads are those of StyleGAN-T (Sauer et al. 2023, arXiv 2301.09515), which RAE trains its decoder with
(Zheng et al. 2025, arXiv 2510.11690).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from latentae.discriminators.patchgan import GROUPS


class Trunk(Protocol):
    """A frozen network that maps images [B, 3, H, W] in [−1, 1] to the features of several layers.

    Attributes:
        channels: C_l of each layer's features [B, C_l, h_l, w_l].
        windows: of each layer, the windows (size, stride) of the poolings between it and the deepest one.
    """

    channels: Sequence[int]
    windows: Sequence[Sequence[tuple[int, int]]]

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Returns the features, which can be differentiated twice in the images."""


class _Residual(nn.Module):
    """(x + f(x)) / √2, as in StyleGAN-T's heads."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, values: Tensor) -> Tensor:
        return (values + self.layers(values)) / math.sqrt(2)


class FrozenFeatures(nn.Module):
    """A head on each of several layers of a frozen network. Only the heads learn.

    A head is StyleGAN-T's: a 1×1 convolution, a residual block of nine weights per pair of channels, and a
    1×1 convolution to one logit per position, all at unit spectral norm. Features are normalised in groups of
    channels, image by image, because batch statistics differ between ranks. The head of a shallow layer also
    halves its grid, by convolutions with the windows of the poolings that the network itself has from there
    on. So all heads give equally many logits, and count equally in their mean.

    The frozen network is part of no checkpoint: ``state_dict`` holds the heads alone. It follows ``to``.

    Args:
        in_channels: channels of the images: 3.
        trunk: the frozen network, a module that does what ``Trunk`` says.
        head_channels: width of the heads, in 8 groups of two channels or more: a single value would be
            normalised to zero.

    Raises:
        ValueError: images that are not RGB, or a width that is no multiple of 16.
    """

    forward_has_state = True  # power iteration, as in a ``PatchGAN`` with spectral norm

    def __init__(self, in_channels: int = 3, *, trunk: Any, head_channels: int = 128) -> None:
        super().__init__()
        if in_channels != 3:
            raise ValueError(f"in_channels is {in_channels}, but the frozen network takes RGB images: give 3")
        if head_channels % (2 * GROUPS):
            raise ValueError(f"head_channels is {head_channels}, but must be a multiple of {2 * GROUPS}")
        self._outside = (trunk,)  # in a tuple, where nn.Module does not find it
        self.heads = nn.ModuleList(
            _head(channels, head_channels, windows)
            for channels, windows in zip(trunk.channels, trunk.windows, strict=True)
        )

    @property
    def trunk(self) -> Any:
        """The frozen network."""
        return self._outside[0]

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits [B, heads, h, w] of images [B, 3, H, W] in [−1, 1]. A positive one says real."""
        features = self.trunk(images)
        return torch.cat([head(each) for head, each in zip(self.heads, features, strict=True)], dim=1)

    def _apply(self, fn: Callable[[Any], Any], recurse: bool = True) -> Self:
        """Moves and casts the frozen network with the heads."""
        self.trunk._apply(fn, recurse)
        return super()._apply(fn, recurse)


def _head(channels: int, width: int, windows: Sequence[tuple[int, int]]) -> nn.Sequential:
    layers = _block(channels, width, 1)
    for size, stride in windows:
        layers += _block(width, width, size, stride)
    layers.append(_Residual(*_block(width, width, 3, padding=1)))
    return nn.Sequential(*layers, spectral_norm(nn.Conv2d(width, 1, 1)))


def _block(inputs: int, outputs: int, size: int, stride: int = 1, padding: int = 0) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, size, stride, padding)
    return [spectral_norm(convolution), nn.GroupNorm(GROUPS, outputs), nn.LeakyReLU(0.2, inplace=True)]
