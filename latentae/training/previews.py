"""Sample grids: each image above its reconstruction."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from latentae.evaluation.pictures import picture_grid, save_png


@torch.no_grad()
def save_preview(autoencoder: nn.Module, images: Tensor, path: Path) -> None:
    """Writes a PNG: the images in the upper row, what the autoencoder makes of them below.

    Args:
        autoencoder: in eval mode.
        images: [B, C, H, W] in [−1, 1], on the model's device; ``picture_grid`` says how channels are shown.
        path: where to; its folder must exist. The file appears whole or not at all.
    """
    save_png(picture_grid(torch.stack([images, autoencoder(images).sample])), path)
