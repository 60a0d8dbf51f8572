"""Antialiased bilinear resizing as two matrix products."""

from __future__ import annotations

import torch
from torch import Tensor


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes images or latents [B, C, H, W] to another height and width.

    The values are those of ``F.interpolate(mode="bilinear", antialias=True)``. Its gradient has no
    deterministic kernel on CUDA, but matrix products have one. Downsampling applies a low-pass filter, so
    nothing aliases.

    Args:
        images: of any floating-point type; calculated in float32 or better, returned in theirs.
        size: (height, width) of the result, 1 or more each.
    """
    height, width = images.shape[-2:]
    if (height, width) == size:
        return images
    with torch.autocast(images.device.type, enabled=False):
        values = images.to(torch.promote_types(images.dtype, torch.float32))
        rows, columns = (
            _weights(before, after, values) for before, after in ((height, size[0]), (width, size[1]))
        )
        return (rows @ values @ columns.T).to(images.dtype)


def _weights(before: int, after: int, like: Tensor) -> Tensor:
    """Returns [after, before]: the weight of each old position in each new one. Rows sum to 1."""
    places = torch.arange(max(before, after), dtype=like.dtype, device=like.device) + 0.5
    ratio = before / after
    distance = places[:before] - places[:after, None] * ratio
    weights = (1 - distance.abs() / max(ratio, 1.0)).clamp_min(0)
    return weights / weights.sum(dim=1, keepdim=True)
