"""Layers of the convolutional discriminators: a block, its normalisation, and its initial weights."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

_NORMALISATIONS = ("group", "spectral", "none")
GROUPS = 8
_MAX_WIDTH_FACTOR = 8


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
