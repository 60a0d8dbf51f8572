"""The nearest code of the few rows that float32 cannot decide."""

from __future__ import annotations

import torch
from torch import Tensor

from latentae.quantizers.lookup_scores import Frame, augment, score_codes, score_latents

# Scores, or values of latents, held at a time.
_ELEMENTS = 1 << 17


def decide_rows(latents: Tensor, codebook: Tensor, frame: Frame) -> Tensor:
    """The code with the smallest Σᵢ (xᵢ − cᵢ)², in float64, and the lowest index among several.

    Scores in float64 leave of all codes those that even its rounding could put first; of these the sums are
    taken. Of codes that occur several times only the first takes part.

    Args:
        latents: [N, d]; rows that hold NaN or infinity get code 0.
        codebook: [K, d].
        frame: of the data these are rows of.

    Returns:
        [N] int64.
    """
    scored = score_codes(codebook, frame, torch.float64)
    kept = _distinct(codebook, scored.bias)
    columns = scored.columns()
    if len(kept) < len(codebook):
        columns = columns[:, kept]
    nearest = torch.zeros(len(latents), dtype=torch.int64, device=latents.device)
    finite = latents.isfinite().all(dim=1).nonzero()[:, 0]
    for rows in finite.split(max(1, _ELEMENTS // len(kept))):
        centered, norms = score_latents(latents[rows], frame, scored)
        upper = augment(centered, norms) @ columns
        best, index = upper.max(dim=1)
        lower = best - scored.doubt(norms, kept[index])
        # Turned round, so that NaN, from a sum out of range, makes candidates of all.
        row, code = (~(upper < lower[:, None])).nonzero(as_tuple=True)
        row, code = rows[row], kept[code]
        row, code = _first_of_each_row(row, code, _squares(latents, codebook, row, code))
        nearest[row] = code
    return nearest


def _distinct(codebook: Tensor, bias: Tensor) -> Tensor:
    """Indices of the codes without those equal to an earlier one.

    Equal codes have equal biases, so they are neighbours once sorted by them; those that a third code of the
    same bias parts are missed, which costs time alone.
    """
    values, order = bias.sort(stable=True)
    pairs = (values[1:] == values[:-1]).nonzero()[:, 0]
    repeated = (codebook[order[pairs]] == codebook[order[pairs + 1]]).all(dim=1)
    kept = torch.ones(len(codebook), dtype=torch.bool, device=codebook.device)
    kept[order[pairs[repeated] + 1]] = False
    return kept.nonzero()[:, 0]


def _squares(latents: Tensor, codebook: Tensor, row: Tensor, code: Tensor) -> Tensor:
    """Squared distances [P] between latents[row] and codebook[code]."""
    pieces = max(1, _ELEMENTS // max(1, latents.shape[1]))
    return torch.cat(
        [
            (latents[i].double() - codebook[j].double()).square_().sum(dim=1)
            for i, j in zip(row.split(pieces), code.split(pieces), strict=True)
        ]
    )


def _first_of_each_row(row: Tensor, code: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    """Each row of pairs sorted by row, then code, with the code of its smallest square."""
    order = squares.argsort(stable=True)
    order = order[row[order].argsort(stable=True)]
    row, code = row[order], code[order]
    first = torch.ones_like(row, dtype=torch.bool)
    first[1:] = row[1:] != row[:-1]
    return row[first], code[first]
