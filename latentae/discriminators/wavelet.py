"""A discriminator of Haar wavelets at several scales, after SWAGAN (Gal et al. 2021, arXiv 2102.06108)."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from latentae.discriminators.patchgan import (
    check_normalisation,
    convolution_block,
    doubling_widths,
    init_convolution,
    weight_normalisation,
)


def haar(images: Tensor) -> Tensor:
    """Returns the four bands of the orthonormal Haar transform: [B, 4·C, H/2, W/2] of [B, C, H, W].

    With a, b in the upper and c, d in the lower row of a 2×2 block, the bands are (a + b + c + d)/2,
    (a − b + c − d)/2, (a + b − c − d)/2 and (a − b − c + d)/2, each for all C channels. An odd last row or
    column is left out.
    """
    height, width = (side // 2 * 2 for side in images.shape[-2:])
    a, b = images[..., 0:height:2, 0:width:2], images[..., 0:height:2, 1:width:2]
    c, d = images[..., 1:height:2, 0:width:2], images[..., 1:height:2, 1:width:2]
    above, below, left, right = a + b, c + d, a - b, c - d
    return torch.cat([above + below, left + right, above - below, left - right], dim=1) / 2


class WaveletDiscriminator(nn.Module):
    """Logits of overlapping patches, from the Haar bands of the images at each of several scales.

    A 1×1 convolution takes in the bands of each scale, so that the network sees high frequencies without
    having to filter for them. Scale l + 1 is scale l at half its size, the mean of 2×2 pixels. As in SWAGAN's
    discriminator, what the convolutions made of the finer scales is added to what comes in. Unlike SWAGAN's
    it ends in a logit per patch, and images may have any size.

    Args:
        in_channels: channels of the images.
        base_channels: width at the first scale; it doubles at each further one, up to eight times.
        num_layers: number of scales; logits are 2^num_layers pixels apart.
        norm: of the inner layers, as in ``PatchGAN``.

    Raises:
        ValueError: an unknown norm, or widths that the groups do not divide.
    """

    def __init__(
        self, in_channels: int = 3, *, base_channels: int = 64, num_layers: int = 3, norm: str = "group"
    ) -> None:
        super().__init__()
        check_normalisation(norm, base_channels)
        self.forward_has_state = norm == "spectral"
        wrap = weight_normalisation(norm)
        widths = doubling_widths(base_channels, num_layers)
        self.entries = nn.ModuleList(
            nn.Sequential(wrap(nn.Conv2d(4 * in_channels, width, 1)), nn.LeakyReLU(0.2, inplace=True))
            for width in widths
        )
        self.halvings = nn.ModuleList(
            nn.Sequential(*convolution_block(narrow, wide, 4, 2, norm))
            for narrow, wide in itertools.pairwise(widths)
        )
        self.head = nn.Sequential(
            *convolution_block(widths[-1], widths[-1], 3, 1, norm), wrap(nn.Conv2d(widths[-1], 1, 3, 1, 1))
        )
        self.apply(init_convolution)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits [B, 1, h, w] of images [B, C, H, W] in [−1, 1]. A positive one says real."""
        channels = images.shape[1]
        bands = haar(images)
        hidden = self.entries[0](bands)
        for entry, halve in zip(self.entries[1:], self.halvings, strict=True):
            bands = haar(bands[:, :channels] / 2)  # the first band is twice the mean of 2×2 pixels
            hidden = halve(hidden) + entry(bands)
        return self.head(hidden)
