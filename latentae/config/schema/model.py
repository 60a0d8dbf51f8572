"""The autoencoders and their quantizers.

A new quantizer is a section here and its name in the union `_Member`.
"""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from latentae.config.schema.base import (
    FROM_LIST,
    Count,
    InsideUnit,
    Positive,
    PositiveOrZero,
    Section,
    Share,
    Switches,
    Text,
    Widths,
)

MOST_CODES = 1 << 20
"""Most codes of a quantizer. The same limit stands in latentae.quantizers, which config cannot import."""

Levels = Annotated[tuple[Annotated[int, Field(ge=2)], ...], FROM_LIST, Field(min_length=1)]


class _Table(Section):
    """The keys of quantizers with a learned table of codes."""

    type: str
    num_codes: Annotated[int, Field(ge=2, le=MOST_CODES)]
    """Number of codes in the codebook (taming-transformers: 1024 or 16384)."""
    code_dim: Count | None = None
    """Dimensions of a code; null: `latent_channels`, or each group's equal share of them."""


class _NearestCode(_Table):
    """The keys of quantizers that look up the nearest code."""

    commitment_weight: PositiveOrZero = 0.25
    """Weight (beta) of the commitment term |z - sg[e]|^2, which keeps the latents z close to their codes e
    (arXiv 1711.00937, eq. 3)."""
    gradient: Literal["straight_through", "rotation"] = "straight_through"
    """Gradient from codes to latents. straight_through: copied unchanged. rotation: rotated and scaled by the
    transform that maps the latent to its code (rotation trick, arXiv 2410.06424)."""
    revive_after: Count | None = None
    """Steps between two checks for unused codes. A code that was not used since the last check is replaced by
    a random latent. null: never."""


class VectorQuantizerConfig(_NearestCode):
    """Nearest code; the codebook is learned by gradient descent (VQ-VAE, arXiv 1711.00937)."""

    type: Literal["vector"]
    codebook_weight: PositiveOrZero = 1.0
    """Weight of the codebook term |sg[z] - e|^2, which moves the codes e towards their latents z."""
    legacy_loss_order: bool = False
    """Swap `commitment_weight` and `codebook_weight`, so that beta weights the codebook term. Use it to
    continue models that were trained this way (`legacy=True`, the default in taming-transformers)."""
    init: Literal["uniform", "data"] = "data"
    """Initial codes. uniform: drawn from [-1/num_codes, 1/num_codes]; most of these codes are never used.
    data: placed by k-means on the first latents."""


class EMAQuantizerConfig(_NearestCode):
    """Nearest code; each code is a moving average of its latents (arXiv 1711.00937, appendix A.1)."""

    type: Literal["ema"]
    decay: InsideUnit = 0.99
    """Decay of the moving average per step."""
    epsilon: Positive = 1e-5
    """Laplace smoothing of the code counts. It keeps the average of an unused code finite."""
    init: Literal["uniform", "data"] = "data"
    """Initial codes. uniform: drawn from [-1/num_codes, 1/num_codes]; most of these codes are never used.
    data: placed by k-means on the first latents."""


class CosineQuantizerConfig(_NearestCode):
    """Code with the smallest angle; codes and latents are normalised to unit length. Works best with few
    dimensions (ViT-VQGAN, arXiv 2110.04627; LlamaGen: `code_dim` 8)."""

    type: Literal["cosine"]
    codebook_weight: PositiveOrZero = 1.0
    """Weight of the codebook term |sg[z] - e|^2, which moves the codes e towards their latents z."""
    init: Literal["uniform", "data"] = "data"
    """Initial codes. uniform: drawn from [-1/num_codes, 1/num_codes]; most of these codes are never used.
    data: placed by k-means on the first latents."""


class SimVQConfig(_NearestCode):
    """Nearest code; the codebook is frozen and one learned linear layer transforms it (SimVQ, arXiv
    2411.02038)."""

    type: Literal["simvq"]
    codebook_weight: PositiveOrZero = 1.0
    """Weight of the codebook term |sg[z] - e|^2, which moves the codes e towards their latents z."""
    init: Literal["normal", "data"] = "data"
    """The frozen codebook. normal: drawn from N(0, 1/code_dim), as published. data: placed by k-means on the
    first latents."""


class IBQConfig(_Table):
    """Code with the largest dot product with the latent; the gradient is that of a softmax over all codes,
    which needs memory for positions x codes numbers (IBQ, arXiv 2412.02692)."""

    type: Literal["ibq"]
    codebook_weight: PositiveOrZero = 0.25
    """Weight of the codebook term |sg[z] - e|^2, which moves the codes e towards their latents z."""
    entropy_weight: PositiveOrZero = 0.0
    """Weight of the entropy penalty, which makes each choice of a code certain and the use of all codes even;
    0: none."""
    temperature: Positive = 0.01
    """Softmax temperature in the entropy penalty."""


class FSQConfig(Section):
    """Rounds each channel to a few levels; there is no codebook to learn (FSQ, arXiv 2309.15505)."""

    type: Literal["fsq"]
    levels: Levels
    """Number of levels of each channel. The number of codes is their product. The paper uses [8, 6, 5] (240
    codes), [8, 5, 5, 5] (1000), [7, 5, 5, 5, 5] (4375), [8, 8, 8, 6, 5] (15360)."""
    init: Literal["none", "data"] = "data"
    """data: before the first step, change the convolution in front of the quantizer so that the first
    latents have mean 0 and covariance I and cover the whole grid. none: leave it as initialised."""
    spread_weight: PositiveOrZero = 0.1
    """Weight of a penalty on channels that duplicate each other or stay at their outermost levels; 0: none,
    as in the paper."""


class _Signs(Section):
    """The keys of quantizers with one bit per channel."""

    type: str
    bits: Annotated[int, Field(ge=1, le=20)]
    """Number of channels, each quantized to its sign. There are 2^bits codes."""
    entropy_weight: PositiveOrZero = 0.1
    """Weight of the entropy penalty, which makes each choice of a code certain and the use of all codes even;
    0: none."""
    diversity_weight: PositiveOrZero = 1.0
    """Weight of the even use of codes within the entropy penalty."""
    temperature: Positive = 0.01
    """Softmax temperature in the entropy penalty."""
    entropy_group_size: Annotated[int, Field(ge=1, le=16)] = 10
    """Bits per group for which the entropy of code use is computed exactly. The groups' entropies are added
    up."""


class LFQConfig(_Signs):
    """The sign of each channel (lookup-free quantization, MAGVIT-v2, arXiv 2310.05737)."""

    type: Literal["lfq"]
    commitment_weight: PositiveOrZero = 0.25
    """Weight (beta) of the commitment term |z - sg[e]|^2, which keeps the latents z close to their codes e
    (arXiv 1711.00937, eq. 3)."""


class BSQConfig(_Signs):
    """The sign of each channel, on the unit sphere (binary spherical quantization, arXiv 2406.07548)."""

    type: Literal["bsq"]
    commitment_weight: PositiveOrZero = 0.0
    """Weight (beta) of the commitment term |z - sg[e]|^2, which keeps the latents z close to their codes e
    (arXiv 1711.00937, eq. 3)."""


_Member: TypeAlias = (
    VectorQuantizerConfig
    | EMAQuantizerConfig
    | CosineQuantizerConfig
    | SimVQConfig
    | IBQConfig
    | FSQConfig
    | LFQConfig
    | BSQConfig
)
MemberConfig = Annotated[_Member, Field(discriminator="type")]


class ResidualQuantizerConfig(Section):
    """Several quantizers in sequence; each quantizes the remainder of the previous ones (arXiv
    2107.03312)."""

    type: Literal["residual"]
    depth: Count
    """Number of quantizers. Each position has one index per quantizer."""
    member: MemberConfig
    """The quantizer that is repeated."""
    dropout: Share = 0.0
    """Probability that a training step uses only the first n quantizers, with n drawn from 1 to `depth`."""
    gradient: Literal["straight_through", "rotation"] = "straight_through"
    """Gradient from codes to latents. straight_through: copied unchanged. rotation: rotated and scaled by the
    transform that maps the latent to its code (rotation trick, arXiv 2410.06424)."""
    scale: Positive = 1.0
    """The remainder is divided by scale^i before quantizer i. Use 1 for learned codes and less for fixed ones
    (0.5 for lfq and bsq)."""


class GroupedQuantizerConfig(Section):
    """Splits the channels into equal groups with one quantizer each (product quantization)."""

    type: Literal["grouped"]
    groups: Count
    """Number of groups. Each position has one index per group."""
    member: MemberConfig
    """The quantizer that is repeated."""


QuantizerConfig = Annotated[
    _Member | ResidualQuantizerConfig | GroupedQuantizerConfig, Field(discriminator="type")
]


class _AutoencoderConfig(Section):
    """The keys that all models have."""

    class_: str = Field(alias="class")
    in_channels: Count = 3
    """Channels of the input images."""
    out_channels: Count | None = None
    """Channels of the reconstruction; null: `in_channels`."""
    block_out_channels: Widths
    """Channels of each level, highest resolution first. Each level after the first halves height and
    width."""
    latent_channels: Count
    """Channels of the latents."""
    pretrained: Text | None = None
    """Model whose weights the run starts from: the folder of a run or of a diffusers model, a single file, or
    a hub id; null: random weights. Architecture keys that this section leaves out, or only has from a base,
    are taken from that model. Where numbers of channels or codes differ, the weights that fit are kept. A
    resumed run does not need that model again."""

    @property
    def downsampling_factor(self) -> int:
        """Image pixels per latent pixel along each side: 2^(levels - 1)."""
        return 2 ** (len(self.block_out_channels) - 1)


class _BackboneConfig(_AutoencoderConfig):
    """The convolutional encoder and decoder of most models, as in diffusers."""

    layers_per_block: Count = 2
    """Residual blocks per level of the encoder. The decoder has one more per level."""
    norm_num_groups: Count = 32
    """Groups of every group norm. It must divide every number in `block_out_channels`."""
    attention_levels: Switches | None = None
    """Whether each level has self-attention, one true or false per level; null: no level has it (VQGAN uses
    it at 16x16 only)."""
    mid_block_attention: bool = True
    """Whether the middle block of the encoder and of the decoder has self-attention."""


class KLVAEConfig(_BackboneConfig):
    """Variational autoencoder with Gaussian latents (latent diffusion, arXiv 2112.10752); without `loss.kl` a
    plain autoencoder."""

    class_: Literal["KLVAE"] = Field(alias="class")
    use_quant_conv: bool = True
    """Whether there are 1x1 convolutions before and after the latents: true in SD 1 and SDXL, false in SD3
    and FLUX.1."""


class TinyAutoencoderConfig(_AutoencoderConfig):
    """TAESD: a small and fast autoencoder of ReLU blocks, without normalisation, attention or posterior. Its
    decoder squeezes latents into (-3, 3). Usually it learns from a larger model, its teacher."""

    class_: Literal["TinyAutoencoder"] = Field(alias="class")
    layers_per_block: Count = 3
    """Residual blocks per level of the encoder and of the decoder. The level at the image's resolution has
    one."""
    pooled_blocks: bool = False
    """Whether the blocks at the latents' resolution have a pooled branch with group normalisation: true in
    TAESD for FLUX.2."""
    pixel_shuffle: bool = False
    """Whether 2x2 pixels are folded into channels before the first convolution and unfolded after the last
    one, which doubles the downsampling factor: true in TAESD for a factor of 16."""

    @property
    def downsampling_factor(self) -> int:
        """Image pixels per latent pixel along each side."""
        return super().downsampling_factor * (2 if self.pixel_shuffle else 1)


class DecoderConfig(Section):
    """A decoder that is not the mirror of its encoder. A KLVAE, Flux2VAE or TinyAutoencoder can have one.
    diffusers' own classes hold such a model only if it is a Flux2VAE of other `widths`;
    `latentae.load_autoencoder` opens all of them."""

    widths: Widths | None = None
    """Channels of each level of the decoder, highest resolution first, as many levels as the encoder has;
    null: `model.block_out_channels`. A narrower decoder starts from the first channels of the pretrained one,
    or of each of its normalisation groups."""
    layers_per_block: Count | None = None
    """Residual blocks per level of the decoder, counted as in `model.layers_per_block`; null: as many as
    there."""
    upscale: Literal[1, 2, 4] = 1
    """How many times as large as the encoder's images the decoder's are. `data.image_size` is the
    size of the decoder's; the encoder sees them downscaled (means of 2x2 or 4x4 pixels)."""


class Flux2VAEConfig(_BackboneConfig):
    """Variational autoencoder of FLUX.2: a KLVAE whose latents are normalised in 2x2 patches by measured
    statistics."""

    class_: Literal["Flux2VAE"] = Field(alias="class")
    decoder_block_out_channels: Widths | None = None
    """An older name of `decoder.widths`. null: as `decoder.widths`, or else `block_out_channels`."""
    use_quant_conv: bool = True
    """Whether there are 1x1 convolutions before and after the latents: true in SD 1 and SDXL, false in SD3
    and FLUX.1."""


class _VQConfig(_BackboneConfig):
    """The backbone around a quantizer, as in diffusers' VQModel."""

    quantizer: QuantizerConfig
    """How latents are mapped to a finite set of codes."""


class VQVAEConfig(_VQConfig):
    """Vector-quantized autoencoder trained without an adversarial loss (arXiv 1711.00937)."""

    class_: Literal["VQVAE"] = Field(alias="class")
    backbone: Literal["stock", "2017"] = "stock"
    """stock: the encoder and decoder of diffusers' VQModel. 2017: the strided convolutions of the first
    VQ-VAE, for which diffusers has no class; of the backbone keys it uses only the channels and
    `layers_per_block`."""


class VQGANConfig(_VQConfig):
    """Vector-quantized autoencoder trained with a perceptual and an adversarial loss (arXiv 2012.09841)."""

    class_: Literal["VQGAN"] = Field(alias="class")


ModelConfig = Annotated[
    KLVAEConfig | Flux2VAEConfig | TinyAutoencoderConfig | VQVAEConfig | VQGANConfig,
    Field(discriminator="class_"),
]
