"""The autoencoders and their quantizers. A new one is a section here and its name in the union at its end."""

from typing import Annotated, Literal

from pydantic import Field

from latentae.config.schema.base import (
    Count,
    InsideUnit,
    Positive,
    PositiveOrZero,
    Section,
    Switches,
    Widths,
)


class _Codebook(Section):
    """What quantizers with a learned codebook share."""

    type: str
    num_codes: Annotated[int, Field(ge=2)]
    """Vectors in the codebook (taming-transformers: 1024 or 16384)."""
    code_dim: Count | None = None
    """Length of a code; null: `latent_channels`."""
    commitment_weight: PositiveOrZero = 0.25
    """Weight (beta) of the commitment term |z - sg[e]|^2, which holds the latents z to their codes e
    (arXiv 1711.00937, eq. 3)."""
    init: Literal["uniform", "data"] = "uniform"
    """Where codes start: uniform in [-1/num_codes, 1/num_codes], or at latents of the first batch."""
    revive_after: Count | None = None
    """Steps a code may stay unused before it is moved to a random latent; null: it is never moved."""


class VectorQuantizerConfig(_Codebook):
    """Nearest code, the codebook learned by gradient (VQ-VAE, arXiv 1711.00937)."""

    type: Literal["vector"]
    codebook_weight: PositiveOrZero = 1.0
    """Weight of the codebook term |sg[z] - e|^2, which moves the codes e to their latents z."""


class EMAQuantizerConfig(_Codebook):
    """Nearest code, the codebook a moving average of its latents (arXiv 1711.00937, appendix A.1)."""

    type: Literal["ema"]
    decay: InsideUnit = 0.99
    """Share of the average kept at each step."""
    epsilon: Positive = 1e-5
    """Laplace smoothing of the code counts: keeps the average of an unused code finite."""


QuantizerConfig = Annotated[VectorQuantizerConfig | EMAQuantizerConfig, Field(discriminator="type")]


class _BackboneConfig(Section):
    """The convolutional encoder and decoder that all models share, as in diffusers."""

    class_: str = Field(alias="class")
    in_channels: Count = 3
    """Channels of the images that are encoded."""
    out_channels: Count | None = None
    """Channels of the reconstruction; null: `in_channels`."""
    block_out_channels: Widths
    """Width of each level, finest first; each level after the first halves height and width."""
    layers_per_block: Count = 2
    """Residual blocks per level of the encoder (the decoder has one more)."""
    norm_num_groups: Count = 32
    """Groups of every group norm; must divide every width in `block_out_channels`."""
    latent_channels: Count
    """Channels of the latents."""
    attention_levels: Switches | None = None
    """For each level, whether it has self-attention; null: none has (VQGAN: at 16x16 only)."""
    mid_block_attention: bool = True
    """Whether the block between the encoder's (decoder's) levels and the latents has self-attention."""

    @property
    def downsampling_factor(self) -> int:
        """Image pixels per latent pixel along each side: 2^(levels − 1)."""
        return 2 ** (len(self.block_out_channels) - 1)


class KLVAEConfig(_BackboneConfig):
    """Variational autoencoder with Gaussian latents (latent diffusion, arXiv 2112.10752); without `loss.kl` a
    plain autoencoder."""

    class_: Literal["KLVAE"] = Field(alias="class")
    use_quant_conv: bool = True
    """Whether 1x1 convolutions stand around the latents: true in SD 1 and SDXL, false in SD3 and FLUX.1."""


class _VQConfig(_BackboneConfig):
    """The backbone around a quantizer, as in diffusers' VQModel."""

    quantizer: QuantizerConfig
    """How latents are mapped to a finite set of codes."""


class VQVAEConfig(_VQConfig):
    """Vector-quantized autoencoder trained without an adversarial loss (arXiv 1711.00937)."""

    class_: Literal["VQVAE"] = Field(alias="class")
    backbone: Literal["stock", "2017"] = "stock"
    """stock: VQModel's encoder and decoder; 2017: the first VQ-VAE's strided convolutions, for which
    diffusers has no class: it reads only the widths and `layers_per_block`."""


class VQGANConfig(_VQConfig):
    """Vector-quantized autoencoder trained with a perceptual and an adversarial loss (arXiv 2012.09841)."""

    class_: Literal["VQGAN"] = Field(alias="class")


ModelConfig = Annotated[KLVAEConfig | VQVAEConfig | VQGANConfig, Field(discriminator="class_")]
