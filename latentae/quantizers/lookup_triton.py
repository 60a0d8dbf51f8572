"""The fused look-up on CUDA: scores, their maximum and the exact decision in two kernels of Triton.

The first keeps the best and the second best score of each row while it walks over the codebook, so that no
score reaches the device's memory. The second has nothing to do for a row whose best two lie further apart
than rounding can shift them; for the others it walks over the codebook again and takes Σᵢ (xᵢ − cᵢ)² in
float64 of every code that could be nearest. Neither makes the host wait.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from latentae.quantizers.lookup_scores import find_frame, score_codes, score_latents

_BLOCK_ROWS = 64
_BLOCK_CODES = 64
_SMALLEST_BLOCK_DIM = 16  # what tl.dot asks for
_LARGEST_BLOCK_DIM = 32
_WARPS = 8  # with fewer the blocks above do not fit into a thread's registers


def nearest_code_triton(latents: Tensor, codebook: Tensor) -> Tensor:
    """``nearest_code`` on a CUDA device.

    Args:
        latents: [N, d], N at least 1.
        codebook: [K, d] of the same dtype and device, K at least 1 and below 2^31.

    Returns:
        [N] int64.
    """
    finite = latents.isfinite().all(dim=1)
    latents = torch.where(finite[:, None], latents, 0).contiguous()
    codebook = codebook.contiguous()
    frame = find_frame(latents, codebook)
    scored = score_codes(codebook, frame, torch.float32)
    centered, norms = score_latents(latents, frame, scored)
    terms = torch.stack([scored.slope, scored.margin, scored.bias])
    (count, dim), num_codes = latents.shape, len(codebook)
    launch = {
        "block_codes": _BLOCK_CODES,
        "block_dim": min(max(triton.next_power_of_2(dim), _SMALLEST_BLOCK_DIM), _LARGEST_BLOCK_DIM),
        "num_warps": _WARPS,
        "enable_fp_fusion": True,
    }
    nearest = torch.empty(count, dtype=torch.int64, device=latents.device)
    threshold = torch.empty(count, dtype=torch.float32, device=latents.device)
    with torch.cuda.device_of(latents):  # Triton launches on the current device
        inputs = (centered, norms, scored.codes, terms)
        _best_score[(triton.cdiv(count, _BLOCK_ROWS),)](
            *inputs, nearest, threshold, count, num_codes, dim, block_rows=_BLOCK_ROWS, **launch
        )
        _exact_distance[(count,)](
            *inputs, nearest, threshold, latents, codebook, frame.scale, num_codes, dim, **launch
        )
    return torch.where(finite, nearest, 0)


@triton.jit
def _best_score(  # type: ignore[no-untyped-def]
    latents,  # x̃ [N, d], float32
    norms,  # ‖x̃‖ [N]
    codes,  # c̃ [K, d], float32
    terms,  # slope, margin and bias [3, K]
    nearest,  # written: [N] int64
    threshold,  # written: [N], the score that the nearest code has at least; infinity where that is decided
    num_rows,
    num_codes,
    dim,
    block_rows: tl.constexpr,
    block_codes: tl.constexpr,
    block_dim: tl.constexpr,
) -> None:
    """One program compares block_rows latents with all codes."""
    infinity = float("inf")
    row = tl.program_id(0).to(tl.int64) * block_rows + tl.arange(0, block_rows)
    norm = tl.load(norms + row, row < num_rows, 0.0)
    # Each place of a block has a best two of its own: one reduction at the end instead of one for each block.
    first = tl.full([block_rows, block_codes], -infinity, tl.float32)
    second = tl.full([block_rows, block_codes], -infinity, tl.float32)
    block = tl.zeros([block_rows, block_codes], tl.int32)
    for start in range(0, num_codes, block_codes):
        code = start + tl.arange(0, block_codes)
        slope = tl.load(terms + code, code < num_codes, 0.0)
        bias = tl.load(terms + 2 * num_codes + code, code < num_codes, -infinity)
        score = tl.zeros([block_rows, block_codes], tl.float32)
        for offset in range(0, dim, block_dim):
            column = offset + tl.arange(0, block_dim)
            x_mask = (row[:, None] < num_rows) & (column[None, :] < dim)
            c_mask = (column[:, None] < dim) & (code[None, :] < num_codes)
            x = tl.load(latents + row[:, None] * dim + column[None, :], x_mask, 0.0)
            c = tl.load(codes + code.to(tl.int64)[None, :] * dim + column[:, None], c_mask, 0.0)
            score = tl.dot(x, c, score, input_precision="ieee")
        score += norm[:, None] * slope[None, :] + bias[None, :]
        # NaN comes of a sum out of range: as infinity it leads to the exact decision.
        score = tl.where(score == score, score, infinity)
        second = tl.maximum(second, tl.minimum(first, score))
        block = tl.where(score > first, start, block)
        first = tl.maximum(first, score)
    best, place = tl.max(first, axis=1, return_indices=True)
    is_best = tl.arange(0, block_codes)[None, :] == place[:, None]
    index = tl.sum(tl.where(is_best, block, 0), axis=1) + place
    runner_up = tl.max(tl.maximum(second, tl.where(is_best, -infinity, first)), axis=1)
    doubt = 2.1 * (norm * tl.load(terms + index) + tl.load(terms + num_codes + index))
    decided = (best < infinity) & (best - runner_up > doubt)
    lowest = tl.where(best < infinity, best - doubt, -infinity)
    tl.store(nearest + row, index.to(tl.int64), row < num_rows)
    tl.store(threshold + row, tl.where(decided, infinity, lowest), row < num_rows)


@triton.jit
def _exact_distance(  # type: ignore[no-untyped-def]
    latents,  # this and the next five as in ``_best_score``
    norms,
    codes,
    terms,
    nearest,  # overwritten where undecided
    threshold,
    raw_latents,  # x [N, d]
    raw_codes,  # c [K, d]
    scale,  # scalar, float64
    num_codes,
    dim,
    block_codes: tl.constexpr,
    block_dim: tl.constexpr,
) -> None:
    """One program decides one row."""
    infinity = float("inf")
    row = tl.program_id(0).to(tl.int64)
    lowest = tl.load(threshold + row)
    if lowest != infinity:
        norm = tl.load(norms + row)
        unit = tl.load(scale)
        smallest = tl.full([], infinity, tl.float64)
        index = tl.load(nearest + row)
        for start in range(0, num_codes, block_codes):
            code = start + tl.arange(0, block_codes)
            code_row = code.to(tl.int64)[:, None] * dim
            score = norm * tl.load(terms + code, code < num_codes, 0.0)
            score += tl.load(terms + 2 * num_codes + code, code < num_codes, -infinity)
            for offset in range(0, dim, block_dim):
                column = offset + tl.arange(0, block_dim)
                c_mask = (code[:, None] < num_codes) & (column[None, :] < dim)
                x = tl.load(latents + row * dim + column, column < dim, 0.0)
                c = tl.load(codes + code_row + column[None, :], c_mask, 0.0)
                score += tl.sum(x[None, :] * c, axis=1)
            candidate = (code < num_codes) & ((score >= lowest) | (score != score))
            if tl.max(candidate.to(tl.int32), axis=0) > 0:
                square = tl.zeros([block_codes], tl.float64)
                for offset in range(0, dim, block_dim):
                    column = offset + tl.arange(0, block_dim)
                    c_mask = candidate[:, None] & (column[None, :] < dim)
                    x = tl.load(raw_latents + row * dim + column, column < dim, 0.0).to(tl.float64)
                    c = tl.load(raw_codes + code_row + column[None, :], c_mask, 0.0).to(tl.float64)
                    difference = tl.where(column[None, :] < dim, (x[None, :] - c) * unit, 0.0)
                    square += tl.sum(difference * difference, axis=1)
                square = tl.where(candidate & (square == square), square, infinity)
                best = tl.min(square, axis=0)
                place = tl.min(tl.where(square == best, code, num_codes), axis=0)
                index = tl.where(best < smallest, place.to(tl.int64), index)
                smallest = tl.minimum(smallest, best)
        tl.store(nearest + row, index)
