"""Finite scalar quantization: channels rounded to a few levels (Mentzer et al. 2023, arXiv 2309.15505)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from latentae.quantizers.gradient import straight_through
from latentae.quantizers.quantizer import Quantizer
from latentae.quantizers.result import FlatOutput

# The outermost levels must be reached, and tanh never reaches 1 (the paper's appendix A.1).
_MARGIN = 1e-3


class FiniteScalarQuantizer(Quantizer):
    """Channel i is bounded to L_i integers around 0 and rounded; the grid of all channels is the codebook.

    f(z) = (L − 1)(1 + ε) / 2 · tanh(z + s) − o, where o is ½ for even L and 0 for odd ones, and s makes
    f(0) = 0; the code is round(f(z)) / ⌊L / 2⌋, in [−1, 1]. The gradient passes the rounding straight
    through. There is nothing to learn, no loss, and nothing that could collapse.

    The index of a code is Σ_i (its integer + ⌊L_i / 2⌋) · Π_{j<i} L_j: the first channel counts fastest, as
    in the paper.

    Args:
        levels: L_i, one for each channel: [8, 5, 5, 5] has 1,000 codes, [8, 8, 8, 6, 5] 15,360. The paper
            advises 5 or more.

    Raises:
        ValueError: no levels, one below 2, or more than 2^20 codes.
    """

    levels: Tensor
    strides: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        check_levels(levels)
        super().__init__(num_codes=math.prod(levels), code_dim=len(levels))
        strides = [math.prod(levels[:channel]) for channel in range(len(levels))]
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("strides", torch.tensor(strides), persistent=False)

    def quantize(self, flat: Tensor) -> FlatOutput:
        half_width = self.levels // 2
        bounded = self._bound(flat)
        integers = bounded.round()
        # NaN is no integer, and stays NaN in ``quantized``.
        digits = integers.nan_to_num().long() + half_width
        indices = (digits * self.strides).sum(dim=1)
        return FlatOutput(straight_through(bounded, integers) / half_width, indices, {})

    def look_up(self, indices: Tensor) -> Tensor:
        half_width = self.levels // 2
        digits = indices[:, None].long() // self.strides % self.levels
        return (digits - half_width).float() / half_width

    def _bound(self, flat: Tensor) -> Tensor:
        """f(z) for latents [N, d]."""
        half = (self.levels - 1).to(flat) * (1 + _MARGIN) / 2
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0).to(flat)
        return torch.tanh(flat + torch.atanh(offset / half)) * half - offset


def check_levels(levels: Sequence[int]) -> None:
    """Raises ValueError for levels of no channel, or below two."""
    if not levels or min(levels) < 2:
        raise ValueError(f"levels are {list(levels)}, but must be one number of 2 or more for each channel")
