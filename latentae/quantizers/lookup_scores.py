"""Distances as dot products, with a bound on what rounding can do to each.

The nearest code c to a latent x is the one with the largest s = x̃·c̃ + b, where

    x̃ = x − μ,   c̃ = c − ν,   b = ½ min‖c − μ‖² − ½ ‖c − μ‖²,

since s differs from −½ ‖x − c‖² by what is the same for all codes. With μ in the midst of the latents and
ν in the midst of the codes all three are small wherever the data lie, and float32 loses little of them: in
whatever order the products are summed, at most ε = γ (‖x̃‖ ‖c̃‖ + |b|), with γ a little above (d + 4) times
the unit roundoff (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1). Two columns more
make the product itself give u = s + ε, which is never below the true s, as the true s is never below u − 2 ε.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# The middle of so many rows is near the middle of all, and no outlier or row of NaN moves it far.
_SAMPLED_ROWS = 64
# Codes whose float64 intermediates are held at a time.
_CODES_AT_A_TIME = 1 << 13
# Scaling by a greater power of two could leave the range of the dtype itself.
_LARGEST_EXPONENT = {torch.float32: 120, torch.float64: 1000}
# More than underflow can change in a sum of scaled products, also where denormals are flushed to zero.
_UNDERFLOW = 2.0**-110
# The squares of smaller values may vanish from a norm.
_INVISIBLE = 2.0**-60


@dataclass
class Frame:
    """Where the data are and how large.

    Attributes:
        latent_center: μ [d], float64 with values that the latents' dtype can hold.
        code_center: ν [d], likewise for the codes.
        scale: scalar, float64, the power of two that brings the data to about the size of 1.
    """

    latent_center: Tensor
    code_center: Tensor
    scale: Tensor


@dataclass
class CodeScores:
    """What K codes contribute to scores, in the units of a frame.

    Attributes:
        codes: c̃ [K, d], zero for codes that hold NaN or infinity.
        slope: [K], the part of ε that grows with ‖x̃‖, for ‖x̃‖ = 1.
        margin: [K], the part of ε that is the same for every latent.
        bias: [K], b + margin; −∞ for codes that hold NaN or infinity, so that they are never the nearest.
        reach: scalar, the ‖x̃‖ up to which no sum leaves the range of the dtype.
    """

    codes: Tensor
    slope: Tensor
    margin: Tensor
    bias: Tensor
    reach: Tensor

    def columns(self) -> Tensor:
        """[d + 2, K]: what the rows of ``augment`` are multiplied by to give u."""
        return torch.cat([self.codes, self.slope[:, None], self.bias[:, None]], dim=1).T

    def doubt(self, norms: Tensor, index: Tensor) -> Tensor:
        """2 ε [N], a little enlarged, of latents with these norms [N] and the codes at index [N]."""
        return 2.1 * (self.slope[index] * norms + self.margin[index])


def find_frame(latents: Tensor, codebook: Tensor) -> Frame:
    """The frame of latents [N, d] and a codebook [K, d], neither of them empty."""
    latent_center, latent_spread = _middle(latents)
    code_center, code_spread = _middle(codebook)
    exponent = -torch.maximum(latent_spread, code_spread).frexp().exponent
    limit = _LARGEST_EXPONENT[torch.promote_types(latents.dtype, torch.float32)]
    scale = torch.exp2(exponent.clamp(-limit, limit).to(torch.float64))
    return Frame(latent_center, code_center, scale)


def _middle(values: Tensor) -> tuple[Tensor, Tensor]:
    """The middle [d] of values [N, d], and how far from it their rows reach, judged by a sample."""
    sample = values[:: max(1, len(values) // _SAMPLED_ROWS)].to(torch.float64)
    # NaN sorts last. Not `median`, which on CUDA has no deterministic form.
    center = sample.sort(dim=0).values[(len(sample) - 1) // 2]
    center = torch.where(center.isfinite(), center, 0.0)
    # The upper quartile: neither outliers nor a majority of unused codes in one place decide it.
    spread = (sample - center).abs().amax(dim=1).sort().values[len(sample) * 3 // 4]
    return center, torch.where(spread.isfinite(), spread, 0.0)


def score_codes(codebook: Tensor, frame: Frame, dtype: torch.dtype) -> CodeScores:
    """The codebook [K, d] in float64 arithmetic, rounded to dtype in the end."""
    parts = [_center_codes(codes, frame, dtype) for codes in codebook.split(_CODES_AT_A_TIME)]
    codes, norms, halves = (torch.cat(columns) for columns in zip(*parts, strict=True))
    finite = halves.isfinite()
    norms = torch.where(finite, norms, 0.0)
    bias = torch.where(finite, halves, torch.inf).amin() - halves
    dim = codebook.shape[1]
    gamma = _roundoff(dim, dtype)
    # b is the difference of two squares, which may be much larger.
    cancelled = _roundoff(dim, torch.float64) * halves
    margin = gamma * bias.abs() + cancelled + _UNDERFLOW * (dim + 1) * (1 + norms)
    return CodeScores(
        codes=codes,
        slope=torch.where(finite, gamma * norms + _UNDERFLOW * dim, 0.0).to(dtype),
        margin=torch.where(finite, margin, 0.0).to(dtype),
        bias=torch.where(finite, bias + margin, -torch.inf).to(dtype),
        reach=(torch.finfo(dtype).max / 8 / norms.amax().clamp(min=1.0)).to(dtype),
    )


def _center_codes(codebook: Tensor, frame: Frame, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """c̃ [K, d], its norms [K] and ½ ‖c − μ‖² [K]."""
    wide = codebook.to(torch.float64)
    centered = (wide - frame.code_center).mul_(frame.scale)
    halves = (wide - frame.latent_center).mul_(frame.scale).square_().sum(dim=1).mul_(0.5)
    norms = torch.linalg.vector_norm(centered, dim=1)
    centered = torch.where(halves.isfinite()[:, None], centered, 0.0)
    return centered.to(dtype), norms, halves


def _roundoff(dim: int, dtype: torch.dtype) -> float:
    """γ for latents of dim values, with room for the rounding of x̃, c̃, b and of the bound itself."""
    return 1.05 * (dim + 8) * torch.finfo(dtype).eps / 2


def score_latents(latents: Tensor, frame: Frame, scored: CodeScores) -> tuple[Tensor, Tensor]:
    """x̃ [N, d] and ‖x̃‖ [N], rounded up; ∞ where a product with codes could leave the dtype's range."""
    dtype = scored.codes.dtype
    wide = torch.promote_types(latents.dtype, dtype)
    centered = ((latents.to(wide) - frame.latent_center.to(wide)) * frame.scale.to(wide)).to(dtype)
    norms = torch.linalg.vector_norm(centered, dim=1) + _INVISIBLE * latents.shape[1]
    return centered, torch.where(norms < scored.reach, norms, torch.inf)


def augment(centered: Tensor, norms: Tensor) -> Tensor:
    """Rows [N, d + 2] of x̃ [N, d], ‖x̃‖ [N] and 1."""
    return torch.cat([centered, norms[:, None], torch.ones_like(norms)[:, None]], dim=1)
