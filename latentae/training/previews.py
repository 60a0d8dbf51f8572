"""Sample grids: each image above its reconstruction."""

from __future__ import annotations

from pathlib import Path

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

_BORDER = 2


@torch.no_grad()
def save_preview(autoencoder: nn.Module, images: Tensor, path: Path) -> None:
    """Writes a PNG: the images in the upper row, what the autoencoder makes of them below.

    Args:
        autoencoder: in eval mode.
        images: [B, C, H, W] in [−1, 1], on the model's device. One channel is shown grey, of more than three
            the first three.
        path: where to; its folder must exist. The file appears whole or not at all.
    """
    rows = torch.stack([images, autoencoder(images).sample]).float().clamp(-1, 1)
    rows = rows[:, :, :3] if rows.shape[2] >= 3 else rows[:, :, :1].expand(-1, -1, 3, -1, -1)
    framed = torch.nn.functional.pad(rows, (_BORDER,) * 4, value=1.0)
    grid = rearrange(framed, "row b c h w -> (row h) (b w) c")
    picture = ((grid + 1) * 127.5).round().to(torch.uint8).cpu().numpy()
    aside = path.with_suffix(".tmp")
    Image.fromarray(picture).save(aside, format="PNG")
    aside.replace(path)
