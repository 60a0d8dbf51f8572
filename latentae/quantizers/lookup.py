"""Nearest code of a codebook, without holding all distances at once."""

from __future__ import annotations

import torch
from torch import Tensor

# Distances held at a time: 2^20 float32 values are 4 MiB, which stays in a core's cache.
_CHUNK_ELEMENTS = 1 << 20


@torch.no_grad()
def nearest_code(latents: Tensor, codebook: Tensor) -> Tensor:
    """Index of the code with the smallest Euclidean distance to each latent.

    Args:
        latents: [N, d], any floating dtype.
        codebook: [K, d], any floating dtype.

    Returns:
        [N] int64, each in [0, K); among equally near codes the one with the lowest index.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    if latents.ndim != 2 or codebook.ndim != 2 or latents.shape[1] != codebook.shape[1]:
        raise ValueError(
            f"nearest_code compares latents [N, d] with a codebook [K, d]; got {list(latents.shape)} and "
            f"{list(codebook.shape)}"
        )
    dtype = torch.promote_types(torch.promote_types(latents.dtype, codebook.dtype), torch.float32)
    with torch.autocast(latents.device.type, enabled=False):
        codes = codebook.to(dtype)
        # ‖x − c‖² = ‖x‖² − 2 x·c + ‖c‖² cancels badly far from the origin: measure from the codes' mean.
        center = codes.mean(dim=0)
        codes = codes - center
        half_squares = codes.square().sum(dim=1).mul_(0.5)
        rows = max(1, _CHUNK_ELEMENTS // codes.shape[0])
        nearest = [
            torch.addmm(half_squares, chunk.to(dtype) - center, codes.T, alpha=-1).argmin(dim=1)
            for chunk in latents.split(rows)
        ]
    return torch.cat(nearest)
