"""The patch discriminator of pix2pix (Isola et al. 2017, arXiv 1611.07004) and VQGAN, and its layers."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

_NORMALISATIONS = ("group", "spectral", "none")
GROUPS = 8
_MAX_WIDTH_FACTOR = 8


class PatchGAN(nn.Module):
    """Logits of overlapping patches: 4×4 convolutions with stride 2 and doubling width, two with stride 1.

    Unlike the published one it has no batch normalisation, whose statistics would mix real and fake images
    and differ between ranks.

    Args:
        in_channels: channels of the images.
        base_channels: width of the first convolution.
        num_layers: how many convolutions have stride 2; 3 makes patches of 70 pixels.
        norm: ``group`` (8 groups), ``spectral`` (every weight at unit spectral norm) or ``none``.

    Raises:
        ValueError: an unknown norm, or widths that the groups do not divide.
    """

    def __init__(
        self, in_channels: int = 3, *, base_channels: int = 64, num_layers: int = 3, norm: str = "group"
    ) -> None:
        super().__init__()
        check_normalisation(norm, base_channels)
        # Power iteration in train mode changes the weights at each forward.
        self.forward_has_state = norm == "spectral"
        wrap = weight_normalisation(norm)
        widths = doubling_widths(base_channels, num_layers + 1)

        layers: list[nn.Module] = [wrap(nn.Conv2d(in_channels, widths[0], 4, 2, 1))]
        layers.append(nn.LeakyReLU(0.2, inplace=True))
        for i, (narrow, wide) in enumerate(itertools.pairwise(widths), start=1):
            layers += convolution_block(narrow, wide, 4, 2 if i < num_layers else 1, norm)
        layers.append(wrap(nn.Conv2d(widths[-1], 1, 4, 1, 1)))
        self.layers = nn.Sequential(*layers)
        self.apply(init_convolution)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits [B, 1, h, w] of images [B, C, H, W] in [−1, 1]. A positive one says real."""
        return self.layers(images)


def check_normalisation(norm: str, base_channels: int) -> None:
    """Checks the arguments that all convolutional discriminators have.

    Raises:
        ValueError: an unknown norm, or widths that the groups do not divide.
    """
    if norm not in _NORMALISATIONS:
        raise ValueError(f"norm is {norm!r}, but must be one of {', '.join(_NORMALISATIONS)}")
    if norm == "group" and base_channels % GROUPS:
        raise ValueError(f"base_channels is {base_channels}, but with norm=group must divide by {GROUPS}")


def doubling_widths(base_channels: int, count: int) -> list[int]:
    """Returns widths that double from layer to layer, up to eight times the first."""
    return [base_channels * min(2**i, _MAX_WIDTH_FACTOR) for i in range(count)]


def weight_normalisation(norm: str) -> Callable[[nn.Module], nn.Module]:
    """Returns what a convolution is wrapped in: ``spectral`` keeps its weight at unit spectral norm."""
    return spectral_norm if norm == "spectral" else nn.Identity()


def convolution_block(
    in_channels: int, out_channels: int, kernel_size: int, stride: int, norm: str
) -> list[nn.Module]:
    """Returns a convolution with a padding of 1, its normalisation and a LeakyReLU.

    Args:
        norm: ``group`` (8 groups), ``spectral`` or ``none``.
    """
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size, stride, 1, bias=norm != "group")
    normalisation = [nn.GroupNorm(GROUPS, out_channels)] if norm == "group" else []
    return [weight_normalisation(norm)(convolution), *normalisation, nn.LeakyReLU(0.2, inplace=True)]


def init_convolution(module: nn.Module) -> None:
    """Draws a convolution's weight from N(0, 0.02²) and sets its bias to zero, as pix2pix does."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
