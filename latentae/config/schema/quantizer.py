"""The quantizers. A new one is a section here and its name in a union at the end."""

from typing import Annotated, Literal

from pydantic import Field

from latentae.config.schema.base import (
    FROM_LIST,
    Count,
    InsideUnit,
    Positive,
    PositiveOrZero,
    Section,
    Share,
)

Levels = Annotated[tuple[Annotated[int, Field(ge=2)], ...], FROM_LIST, Field(min_length=1)]


class _Table(Section):
    """What quantizers with a learned table of codes share."""

    type: str
    num_codes: Annotated[int, Field(ge=2, le=1 << 20)]
    """Vectors in the codebook (taming-transformers: 1024 or 16384)."""
    code_dim: Count | None = None
    """Length of a code; null: `latent_channels`, or an equal share of them in a group."""


class _NearestCode(_Table):
    """What quantizers that look up the nearest code share."""

    commitment_weight: PositiveOrZero = 0.25
    """Weight (beta) of the commitment term |z - sg[e]|^2, which holds the latents z to their codes e
    (arXiv 1711.00937, eq. 3)."""
    gradient: Literal["straight_through", "rotation"] = "straight_through"
    """How the gradient passes from codes to latents: as it is, or turned and scaled as the latent would have
    to be to become its code (rotation trick, arXiv 2410.06424)."""
    revive_after: Count | None = None
    """Steps a code may stay unused before it is moved to a random latent; null: it is never moved."""


class VectorQuantizerConfig(_NearestCode):
    """Nearest code, the codebook learned by gradient (VQ-VAE, arXiv 1711.00937)."""

    type: Literal["vector"]
    codebook_weight: PositiveOrZero = 1.0
    """Weight of the codebook term |sg[z] - e|^2, which moves the codes e to their latents z."""
    legacy_loss_order: bool = False
    """Swap `commitment_weight` and `codebook_weight`, so that beta stands on the codebook term: to continue
    models that were trained so (`legacy=True`, the default of taming-transformers)."""
    init: Literal["uniform", "data"] = "data"
    """Where codes start: uniform in [-1/num_codes, 1/num_codes], which most codes never leave, or by k-means
    of the first latents."""


class EMAQuantizerConfig(_NearestCode):
    """Nearest code, the codebook a moving average of its latents (arXiv 1711.00937, appendix A.1)."""

    type: Literal["ema"]
    decay: InsideUnit = 0.99
    """Share of the average kept at each step."""
    epsilon: Positive = 1e-5
    """Laplace smoothing of the code counts: keeps the average of an unused code finite."""
    init: Literal["uniform", "data"] = "data"
    """Where codes start: uniform in [-1/num_codes, 1/num_codes], which most codes never leave, or by k-means
    of the first latents."""


class CosineQuantizerConfig(_NearestCode):
    """Code of the smallest angle, codes and latents at unit length, best with few dimensions (ViT-VQGAN,
    arXiv 2110.04627; LlamaGen: `code_dim` 8)."""

    type: Literal["cosine"]
    codebook_weight: PositiveOrZero = 1.0
    """Weight of the codebook term |sg[z] - e|^2, which moves the codes e to their latents z."""
    init: Literal["uniform", "data"] = "data"
    """Where codes start: uniform in [-1/num_codes, 1/num_codes], which most codes never leave, or by k-means
    of the first latents."""


class SimVQConfig(_NearestCode):
    """Nearest code of a frozen codebook behind one learned linear layer (SimVQ, arXiv 2411.02038)."""

    type: Literal["simvq"]
    codebook_weight: PositiveOrZero = 1.0
    """Weight of the codebook term |sg[z] - e|^2, which moves the codes e to their latents z."""
    init: Literal["normal", "data"] = "data"
    """What the frozen codebook is: drawn from N(0, 1/code_dim) as published, or
    placed by k-means of the first latents."""


class IBQConfig(_Table):
    """Code of the largest product with the latent, the gradient through a softmax over all codes, which holds
    positions x codes numbers (IBQ, arXiv 2412.02692)."""

    type: Literal["ibq"]
    codebook_weight: PositiveOrZero = 0.25
    """Weight of the codebook term |sg[z] - e|^2, which moves the codes e to their latents z."""
    entropy_weight: PositiveOrZero = 0.0
    """Weight of the entropy penalty: each choice of a code sure, all of them evenly spread; 0: none."""
    temperature: Positive = 0.01
    """Temperature of the choice in the entropy penalty."""


class FSQConfig(Section):
    """Each channel rounded to a few levels; there is no codebook to learn (FSQ, arXiv 2309.15505)."""

    type: Literal["fsq"]
    levels: Levels
    """Levels of each channel; there are as many codes as their product. The paper's: [8, 6, 5] (240 codes),
    [8, 5, 5, 5] (1000), [7, 5, 5, 5, 5] (4375), [8, 8, 8, 6, 5] (15360)."""
    init: Literal["none", "data"] = "data"
    """data: the convolution in front is changed before the first step, so that the first latents have mean 0
    and covariance I and reach all of the grid; none: it is left as it was drawn."""
    spread_weight: PositiveOrZero = 0.1
    """Weight of a penalty on channels that say the same or stay at the ends of their levels; 0: none, as in
    the paper."""


class _Signs(Section):
    """What quantizers to one bit a channel share."""

    type: str
    bits: Annotated[int, Field(ge=1, le=20)]
    """Channels, each quantized to its sign; there are 2^bits codes."""
    entropy_weight: PositiveOrZero = 0.1
    """Weight of the entropy penalty: each choice of a code sure, all of them evenly spread; 0: none."""
    diversity_weight: PositiveOrZero = 1.0
    """Weight, within the entropy penalty, of the even spread."""
    temperature: Positive = 0.01
    """Temperature of the choice in the entropy penalty."""
    entropy_group_size: Annotated[int, Field(ge=1, le=16)] = 10
    """Bits over which the entropy of the spread is exact; it is summed over groups of so many."""


class LFQConfig(_Signs):
    """The sign of each channel (lookup-free quantization, MAGVIT-v2, arXiv 2310.05737)."""

    type: Literal["lfq"]
    commitment_weight: PositiveOrZero = 0.25
    """Weight (beta) of the commitment term |z - sg[e]|^2, which holds the latents z to their codes e
    (arXiv 1711.00937, eq. 3)."""


class BSQConfig(_Signs):
    """The sign of each channel, on the unit sphere (binary spherical quantization, arXiv 2406.07548)."""

    type: Literal["bsq"]
    commitment_weight: PositiveOrZero = 0.0
    """Weight (beta) of the commitment term |z - sg[e]|^2, which holds the latents z to their codes e
    (arXiv 1711.00937, eq. 3)."""


MemberConfig = Annotated[
    VectorQuantizerConfig
    | EMAQuantizerConfig
    | CosineQuantizerConfig
    | SimVQConfig
    | IBQConfig
    | FSQConfig
    | LFQConfig
    | BSQConfig,
    Field(discriminator="type"),
]


class ResidualQuantizerConfig(Section):
    """Several quantizers in turn, each for what those before it left (arXiv 2107.03312)."""

    type: Literal["residual"]
    depth: Count
    """How many; a position then has as many indices."""
    member: MemberConfig
    """The quantizer that is repeated."""
    dropout: Share = 0.0
    """Probability that a training step does with the first n only, n drawn from 1 to `depth`."""
    gradient: Literal["straight_through", "rotation"] = "straight_through"
    """How the gradient passes from codes to latents: as it is, or turned and scaled as the latent would have
    to be to become its code (rotation trick, arXiv 2410.06424)."""
    scale: Positive = 1.0
    """What is left is divided by scale^i before quantizer i: 1 for learned codes, less for fixed ones (0.5
    for lfq and bsq)."""


class GroupedQuantizerConfig(Section):
    """The channels in equal groups, each with a quantizer of its own (product quantization)."""

    type: Literal["grouped"]
    groups: Count
    """How many; a position then has as many indices."""
    member: MemberConfig
    """The quantizer that is repeated."""


QuantizerConfig = Annotated[
    VectorQuantizerConfig
    | EMAQuantizerConfig
    | CosineQuantizerConfig
    | SimVQConfig
    | IBQConfig
    | FSQConfig
    | LFQConfig
    | BSQConfig
    | ResidualQuantizerConfig
    | GroupedQuantizerConfig,
    Field(discriminator="type"),
]
