"""The patch discriminator of pix2pix (Isola et al. 2017, arXiv 1611.07004), which VQGAN uses."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

_NORMALISATIONS = ("group", "spectral", "none")
_GROUPS = 8
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
        if norm not in _NORMALISATIONS:
            raise ValueError(f"norm is {norm!r}, but must be one of {', '.join(_NORMALISATIONS)}")
        if norm == "group" and base_channels % _GROUPS:
            raise ValueError(
                f"base_channels is {base_channels}, but with norm=group must divide by {_GROUPS}"
            )
        # Power iteration in train mode changes the weights at each forward.
        self.forward_has_state = norm == "spectral"
        wrap: Callable[[nn.Module], nn.Module] = spectral_norm if norm == "spectral" else nn.Identity()
        widths = [base_channels * min(2**i, _MAX_WIDTH_FACTOR) for i in range(num_layers + 1)]

        layers: list[nn.Module] = [wrap(nn.Conv2d(in_channels, widths[0], 4, 2, 1))]
        layers.append(nn.LeakyReLU(0.2, inplace=True))
        for i, (narrow, wide) in enumerate(itertools.pairwise(widths), start=1):
            stride = 2 if i < num_layers else 1
            layers.append(wrap(nn.Conv2d(narrow, wide, 4, stride, 1, bias=norm != "group")))
            if norm == "group":
                layers.append(nn.GroupNorm(_GROUPS, wide))
            layers.append(nn.LeakyReLU(0.2, inplace=True))
        layers.append(wrap(nn.Conv2d(widths[-1], 1, 4, 1, 1)))
        self.layers = nn.Sequential(*layers)
        self.apply(_init_weights)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits [B, 1, h, w] of images [B, C, H, W] in [−1, 1]. A positive one says real."""
        return self.layers(images)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
