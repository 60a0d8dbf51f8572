"""Finite scalar quantization: channels rounded to a few levels (Mentzer et al. 2023, arXiv 2309.15505)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor

from latentae.quantizers.entropy import mean_over_ranks
from latentae.quantizers.gradient import straight_through
from latentae.quantizers.quantizer import FlatOutput, Quantizer, check_init, check_weights

# The outermost levels must be reached, and tanh never reaches 1 (the paper's appendix A.1).
_MARGIN = 1e-3
_FEW_LEVELS = 5  # the paper's advice
_LATENTS_TO_START = 4096  # a covariance of a few channels is then known to about a fiftieth


class FiniteScalarQuantizer(Quantizer):
    """FSQ: bounds channel i to L_i integers around 0 and rounds it. The codebook is the grid of all channels.

    f(z) = (L − 1)(1 + ε) / 2 · tanh(z + s) − o, where o is ½ for even L and 0 for odd ones, and s makes f(0)
    = 0; the code is round(f(z)) / ⌊L / 2⌋, in [−1, 1]. The gradient is straight-through. Nothing is learned,
    and the paper has no loss.

    The index of a code is Σ_i (its integer + ⌊L_i / 2⌋) · Π_{j<i} L_j: the first channel counts fastest, as
    in the paper.

    Channels may still be redundant, or stay at the ends of the grid, most of which is then empty. To prevent
    this, ``start`` asks for whitened latents, and in training a penalty draws u = tanh(z + s) to the moments
    of the uniform distribution on [−1, 1]: w / d (‖3 E[u uᵀ] − I‖² + 3 ‖E[u]‖²), with the means over all
    ranks.

    Args:
        levels: L_i, one for each channel: [8, 5, 5, 5] has 1,000 codes, [8, 8, 8, 6, 5] 15,360. The paper
            advises 5 or more.
        init: what ``start`` does: ``data`` asks for latents of mean 0 and covariance I, which reach the whole
            grid; ``none`` leaves them as they are.
        spread_weight: w of the penalty; 0 leaves it out, as the paper does.

    Raises:
        ValueError: no levels, one below 2, or more than 2^20 codes; an unknown ``init``; a weight below zero.
    """

    levels: Tensor
    strides: Tensor

    def __init__(self, levels: Sequence[int], *, init: str = "data", spread_weight: float = 0.1) -> None:
        check_levels(levels)
        check_weights(spread_weight=spread_weight)
        check_init(init, ("none", "data"))
        super().__init__(num_codes=math.prod(levels), code_dim=len(levels))
        self.init = init
        self.spread_weight = spread_weight
        self.whitens = init == "data"
        self.latents_to_start = _LATENTS_TO_START if self.whitens else 0
        self._levels = tuple(levels)
        self.register_first_values()

    def first_values(self) -> dict[str, Tensor]:
        strides = [math.prod(self._levels[:channel]) for channel in range(len(self._levels))]
        return {"levels": torch.tensor(self._levels), "strides": torch.tensor(strides)}

    def quantize(self, flat: Tensor) -> FlatOutput:
        levels, strides = self._grid(flat.device)
        half_width = levels // 2
        unit, bounded = self._bound(flat)
        integers = bounded.round()
        # NaN is no integer, and stays NaN in ``quantized``.
        digits = integers.nan_to_num().long() + half_width
        indices = (digits * strides).sum(dim=1)
        losses = {"spread": self.spread_weight * self._spread(unit)} if self.spread_weight else {}
        return FlatOutput(straight_through(bounded, integers) / half_width, indices, losses)

    def look_up(self, indices: Tensor) -> Tensor:
        levels, strides = self._grid(indices.device)
        half_width = levels // 2
        digits = indices[:, None].long() // strides % levels
        return (digits - half_width).float() / half_width

    def _grid(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Returns levels and strides [d] on a device: offloading moves parameters only."""
        return self.levels.to(device), self.strides.to(device)

    def _spread(self, unit: Tensor) -> Tensor:
        """Returns how far the first two moments of values [N, d] are from independent uniform ones."""
        count, dim = unit.shape
        moments = mean_over_ranks(
            torch.cat([unit.T @ unit / count, unit.mean(dim=0)[None]]), across_ranks=self.training
        )
        products, means = moments[:dim], moments[dim]
        identity = torch.eye(dim, dtype=unit.dtype, device=unit.device)
        return ((3 * products - identity).square().sum() + 3 * means.square().sum()) / dim

    def _bound(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Returns u = tanh(z + s) and f(z) for latents [N, d]."""
        levels, _ = self._grid(flat.device)
        half = (levels - 1).to(flat) * (1 + _MARGIN) / 2
        offset = torch.where(levels % 2 == 0, 0.5, 0.0).to(flat)
        unit = torch.tanh(flat + torch.atanh(offset / half))
        return unit, unit * half - offset

    def remedies(self) -> list[str]:
        found = [] if self.init == "data" else ["init=data"]
        found.append(f"spread_weight={0.1 if self.spread_weight == 0 else 2 * self.spread_weight:g}")
        levels = [int(level) for level in self._levels]
        most = levels.index(max(levels))
        # There are no codes to revive: a smaller grid helps, or one of fewer channels with more levels.
        if levels[most] > 2:
            levels[most] -= 1
            return [*found, f"levels={levels}"]
        return [*found, f"levels={[_FEW_LEVELS] * max(1, len(levels) // 2)}"]


def check_levels(levels: Sequence[int]) -> None:
    """Raises ValueError if there are no levels, or one below 2."""
    if not levels or not all(isinstance(level, Integral) and level >= 2 for level in levels):
        raise ValueError(f"levels are {list(levels)}, but must be one integer of 2 or more for each channel")
