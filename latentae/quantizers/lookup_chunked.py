"""The chunked look-up: a tile of scores at a time, small enough to stay in a core's cache."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from latentae.quantizers.lookup_exact import decide_rows
from latentae.quantizers.lookup_scores import augment, find_frame, score_codes, score_latents
from latentae.quantizers.products import products_are_reduced

# Scores held at a time, for each thread: 2^18 float32 values are 1 MiB, half of a usual second-level cache.
_TILE_ELEMENTS = 1 << 18
_TILE_CODES = 1 << 11
# An accelerator is slow to start an operation and has no such cache: its tiles are this many times larger.
_ACCELERATOR_TILES = 64
# Rows whose best two scores are collected before they are compared.
_ROWS_AT_A_TIME = 1 << 12


def nearest_code_chunked(latents: Tensor, codebook: Tensor) -> Tensor:
    """``nearest_code`` with the operations every device has.

    On other devices than the CPU it waits for the device once, to learn which rows float64 has to decide.

    Args:
        latents: [N, d], N at least 1.
        codebook: [K, d] of the same dtype and device, K at least 1.

    Returns:
        [N] int64.
    """
    frame = find_frame(latents, codebook)
    dtype = torch.float64 if products_are_reduced(latents.device) else torch.float32
    scored = score_codes(codebook, frame, dtype)
    tiles = [tile.contiguous() for tile in scored.columns().split(_TILE_CODES, dim=1)]
    nearest = torch.empty(len(latents), dtype=torch.int64, device=latents.device)
    undecided = torch.empty(len(latents), dtype=torch.bool, device=latents.device)
    for start in range(0, len(latents), _ROWS_AT_A_TIME):
        rows = slice(start, start + _ROWS_AT_A_TIME)
        centered, norms = score_latents(latents[rows], frame, scored)
        first, index, second = _best_two(augment(centered, norms), tiles)
        nearest[rows] = index
        # Turned round, so that NaN, from a sum out of range, is a doubt as well.
        undecided[rows] = ~(first - second > scored.doubt(norms, index))
    left = undecided.nonzero()[:, 0]
    if len(left):
        nearest[left] = decide_rows(latents[left], codebook, frame)
    return nearest


def _best_two(rows: Tensor, tiles: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The highest score of each row [N], the code that has it, and the highest score of the other codes."""
    count, device = len(rows), rows.device
    firsts = torch.empty(len(tiles), count, dtype=rows.dtype, device=device)
    seconds = torch.empty_like(firsts)
    indices = torch.empty(len(tiles), count, dtype=torch.int64, device=device)
    elements = _TILE_ELEMENTS * (torch.get_num_threads() if device.type == "cpu" else _ACCELERATOR_TILES)
    space = torch.empty(elements, dtype=rows.dtype, device=device)
    best_two = _best_two_cpu if device.type == "cpu" else _best_two_anywhere
    for tile, *results in zip(tiles, firsts, indices, seconds, strict=True):
        height = elements // tile.shape[1]
        scores = space[: height * tile.shape[1]].view(height, -1)
        for part, *outputs in zip(*(values.split(height) for values in (rows, *results)), strict=True):
            best_two(torch.mm(part, tile, out=scores[: len(part)]), *outputs)
    return _merge(firsts, indices, seconds, tiles[0].shape[1])


def _best_two_cpu(scores: Tensor, first: Tensor, index: Tensor, second: Tensor) -> None:
    """Writes the best two scores of each row [n, K], and where the best is; changes the scores."""
    table = scores.numpy()
    np.argmax(table, axis=1, out=index.numpy())  # vectorised, as torch's is not: 20 times faster in cache
    torch.gather(scores, 1, index[:, None], out=first[:, None])
    scores.scatter_(1, index[:, None], -torch.inf)
    torch.amax(scores, dim=1, out=second)


def _best_two_anywhere(scores: Tensor, first: Tensor, index: Tensor, second: Tensor) -> None:
    """``_best_two_cpu`` on any device."""
    torch.max(scores, dim=1, out=(first, index))
    scores.scatter_(1, index[:, None], -torch.inf)
    torch.amax(scores, dim=1, out=second)


def _merge(firsts: Tensor, indices: Tensor, seconds: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best two of all tiles [T, N], which hold the given number of codes each, the last perhaps fewer."""
    first, tile = firsts.max(dim=0)
    index = indices.gather(0, tile[None])[0] + tile * width
    firsts.scatter_(0, tile[None], -torch.inf)
    return first, index, torch.maximum(firsts.amax(dim=0), seconds.amax(dim=0))
