"""The autoencoders. A new one is a section here and its name in the union at its end."""

from typing import Annotated, Literal

from pydantic import Field

from latentae.config.schema.base import Count, Section, Switches, Text, Widths
from latentae.config.schema.quantizer import QuantizerConfig


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
    pretrained: Text | None = None
    """Model whose weights the run starts from: a run's folder, a diffusers folder, a single file, or a hub
    id; null: fresh weights. It brings along what this section leaves out or takes from a base. Numbers of
    channels and codes may differ from its own: what fits is kept. A resume does not need it again."""

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
