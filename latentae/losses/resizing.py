"""Resizing by an antialiased triangle filter, as two matrix products."""

from __future__ import annotations

import torch
from torch import Tensor


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images or latents [B, C, H, W] at another height and width.

    The values of ``F.interpolate(mode="bilinear", antialias=True)``, whose gradient has no deterministic
    kernel on CUDA; matrix products have one. What is made smaller is low-passed first, so that nothing
    aliases.

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
    """[after, before]: what each old position gives to each new one; rows sum to 1."""
    places = torch.arange(max(before, after), dtype=like.dtype, device=like.device) + 0.5
    ratio = before / after
    distance = places[:before] - places[:after, None] * ratio
    weights = (1 - distance.abs() / max(ratio, 1.0)).clamp_min(0)
    return weights / weights.sum(dim=1, keepdim=True)
