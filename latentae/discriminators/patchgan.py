"""The patch discriminator of pix2pix (Isola et al. 2017, arXiv 1611.07004), which VQGAN uses."""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from latentae.discriminators.layers import (
    check_normalisation,
    convolution_block,
    doubling_widths,
    init_convolution,
    weight_normalisation,
)


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
