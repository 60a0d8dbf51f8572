"""Images side by side in one picture, to look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

_BORDER = 2

Picture = NDArray[np.uint8]
"""[H, W, 3]."""


def picture_grid(images: Tensor, border: int = _BORDER) -> NDArray[np.uint8]:
    """One picture of rows and columns of images, with a white border around each.

    Args:
        images: [rows, columns, C, H, W] in [−1, 1]; what lies outside is clamped. One or two channels are
            shown as the first in grey, more than two as the first three in red, green and blue (of RGBA: the
            colours without the alpha).
        border: its width in pixels.

    Returns:
        [rows · (H + 2 · border), columns · (W + 2 · border), 3].
    """
    shown = images.detach().float().clamp(-1, 1)
    shown = shown[:, :, :3] if shown.shape[2] >= 3 else shown[:, :, :1].expand(-1, -1, 3, -1, -1)
    framed = torch.nn.functional.pad(shown, (border,) * 4, value=1.0)
    grid = rearrange(framed, "row column c h w -> (row h) (column w) c")
    return ((grid + 1) * 127.5).round().to(torch.uint8).cpu().numpy()


def save_png(picture: NDArray[np.uint8], path: Path) -> None:
    """Writes [H, W, 3] to ``path``, whose folder must exist. The file appears whole or not at all."""
    aside = path.with_name(f".{path.name}.tmp")
    try:
        Image.fromarray(picture).save(aside, format="PNG")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
