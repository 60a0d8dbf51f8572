"""What is left of an image that goes through an autoencoder again and again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from latentae.evaluation.metrics import psnr, to_uint8


@torch.no_grad()
def cycle_drift(
    reconstruct: Callable[[Tensor], Tensor],
    images: Tensor,
    rounds: Sequence[int] = (1, 2, 5, 10),
    first: Tensor | None = None,
) -> dict[int, Tensor]:
    """PSNR against the original after some rounds of encoding and decoding, as repeated editing goes through.

    Between rounds the picture is rounded to 8 bits, as pipelines do that hand on pictures.

    Args:
        reconstruct: maps images [B, C, H, W] in [−1, 1] to reconstructions.
        images: the originals.
        rounds: after how many rounds to measure; 1 or more, rising.
        first: the reconstruction of the first round where it is there already.

    Returns:
        for each of ``rounds``, [B] float64 in dB.

    Raises:
        ValueError: rounds that do not rise, or begin below 1.
    """
    if not rounds or rounds[0] < 1 or any(a >= b for a, b in itertools.pairwise(rounds)):
        raise ValueError(f"rounds are {list(rounds)}, but must be 1 or more and rise")
    current = images
    drift = {}
    for done in range(1, rounds[-1] + 1):
        output = first if done == 1 and first is not None else reconstruct(current)
        current = (to_uint8(output).to(torch.float32) / 127.5 - 1).to(images.dtype)
        if done in rounds:
            drift[done] = psnr(current, images)
    return drift
