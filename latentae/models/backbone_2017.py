"""The encoder and decoder of the first VQ-VAE (van den Oord et al. 2017, arXiv 1711.00937, section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


class ResidualStack(nn.Module):
    """Blocks of ReLU, 3×3, ReLU, 1×1 with a skip connection, and a ReLU at the end.

    Args:
        channels: of input and output; a quarter as many between the two convolutions, as in the paper.
        num_blocks: number of blocks.
    """

    def __init__(self, channels: int, num_blocks: int) -> None:
        super().__init__()
        between = max(1, channels // 4)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.ReLU(),
                nn.Conv2d(channels, between, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(between, channels, 1),
            )
            for _ in range(num_blocks)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps [B, channels, h, w] to the same shape."""
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return F.relu(hidden)


class Encoder2017(nn.Module):
    """4×4 convolutions with stride 2, then a 3×3 one and a residual stack.

    Args:
        in_channels: of the images.
        out_channels: of the latents, the output of a last 1×1 convolution.
        block_out_channels: widths of the strided convolutions, then of the other layers; the paper has
            64, 128, 128.
        layers_per_block: blocks of the residual stack; the paper has 2.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, block_out_channels: Sequence[int], layers_per_block: int
    ) -> None:
        super().__init__()
        *strided, width = block_out_channels
        down: list[nn.Module] = []
        for before, after in pairwise([in_channels, *strided]):
            down += [nn.Conv2d(before, after, 4, 2, 1), nn.ReLU()]
        self.down = nn.Sequential(*down, nn.Conv2d([in_channels, *strided][-1], width, 3, padding=1))
        self.stack = ResidualStack(width, layers_per_block)
        self.conv_out = nn.Conv2d(width, out_channels, 1)

    def forward(self, sample: Tensor) -> Tensor:
        """Maps images [B, C, H, W] to latents [B, c, h, w]; each strided convolution halves the sides."""
        return self.conv_out(self.stack(self.down(sample)))


class Decoder2017(nn.Module):
    """The encoder's mirror image: a 3×3 convolution, a residual stack, 4×4 transposed convolutions.

    Args:
        in_channels: of the latents.
        out_channels: of the images.
        block_out_channels, layers_per_block: as in the encoder.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, block_out_channels: Sequence[int], layers_per_block: int
    ) -> None:
        super().__init__()
        *strided, width = block_out_channels
        self.conv_in = nn.Conv2d(in_channels, width, 3, padding=1)
        self.stack = ResidualStack(width, layers_per_block)
        widths = [width, *reversed(strided[:-1])]
        up: list[nn.Module] = []
        for before, after in pairwise(widths):
            up += [nn.ConvTranspose2d(before, after, 4, 2, 1), nn.ReLU()]
        self.up = nn.Sequential(*up)
        self.conv_out = nn.ConvTranspose2d(widths[-1], out_channels, 4, 2, 1)

    def forward(self, sample: Tensor, latent_embeds: Tensor | None = None) -> Tensor:
        """Maps latents [B, c, h, w] to images [B, C, H, W]; the second argument is not used."""
        return self.conv_out(self.up(self.stack(self.conv_in(sample))))
