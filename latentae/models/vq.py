"""VQ-VAE and VQGAN: an encoder, a table of codes, a decoder (arXiv 1711.00937, 2012.09841)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL, ModelMixin, VQModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.autoencoders.vae import Decoder, DecoderOutput, Encoder
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from latentae.devices import to_float64_on_cpu
from latentae.models.backbone_2017 import Decoder2017, Encoder2017
from latentae.models.latent import AutoencoderOutput, EncoderOutput, LatentAutoencoder, PointDistribution
from latentae.models.plain import fuse_projections, plain
from latentae.models.tokens import TokenMixin
from latentae.quantizers import (
    QUANTIZERS,
    EMAQuantizer,
    LatentMap,
    Quantizer,
    VectorQuantizer,
    create_quantizer,
    own_size,
    plain_quantizer,
    quantizer_size,
)

_STOCK_NUM_CODES = 256  # what VQModel takes where it is told nothing
# What a stock VQModel has no parameter for.
_OWN_KEYS = ("shift_factor", "latents_mean", "latents_std", "quantizer", "backbone")


class VQVAE(TokenMixin, LatentAutoencoder, ModelMixin, AttentionMixin, ConfigMixin, PeftAdapterMixin):
    """The backbone and parameter names of diffusers' VQModel around one of our quantizers.

    The latents for diffusion are the continuous ones before quantization; ``decode`` quantizes them first, as
    in latent diffusion (arXiv 2112.10752, section 3.1).

    Args:
        in_channels, out_channels: channels of the images; equal but for special uses.
        down_block_types, up_block_types: a diffusers block type for each level.
        block_out_channels: width of each level; each but the last halves the resolution.
        layers_per_block: residual blocks a level (the decoder has one more).
        act_fn: activation, ``silu``.
        latent_channels: channels of the latents that leave the encoder.
        sample_size: the image size trained on, in pixels; with tiling on, tiles are as large.
        num_vq_embeddings: number of codes, of each table where the quantizer has several.
        norm_num_groups: groups of the group normalisation.
        vq_embed_dim: length of a code, or of the codes of all groups together; None means
            ``latent_channels``. A quantizer whose arguments say the number of codes and their length, such as
            FSQ by its levels, sets both in the config.
        scaling_factor, shift_factor: what ``to_latents`` applies, (latents − shift) · scale. A scale of None
            is not known yet.
        norm_type: ``group``, or ``spatial`` for a decoder whose normalisations see the codes (MoVQ, arXiv
            2209.09002); the latter wants codes as long as the latents.
        mid_block_add_attention: attention at the lowest resolution.
        lookup_from_codebook, force_upcast: read by diffusers pipelines, as in VQModel.
        latents_mean, latents_std: as in ``KLVAE``.
        quantizer: its ``type`` and arguments other than its size; None means ``{"type": "vector"}``.
        backbone: ``stock``, that of VQModel, or ``2017``, the first VQ-VAE's strided convolutions, which no
            stock class can hold; it takes widths and ``layers_per_block`` alone.
    """

    _stock_class = VQModel
    _supports_gradient_checkpointing = True
    _supports_group_offloading = False  # the codebook is read without a call to its module, as in VQModel
    _skip_layerwise_casting_patterns = ("quantize",)
    _no_split_modules = ("ResnetBlock2D", *(quantizer.__name__ for quantizer in QUANTIZERS.values()))

    # AttentionMixin has no fusion for the attention class that autoencoders are built of.
    set_default_attn_processor = AutoencoderKL.set_default_attn_processor
    fuse_qkv_projections = fuse_projections
    unfuse_qkv_projections = AutoencoderKL.unfuse_qkv_projections

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",),
        up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",),
        block_out_channels: tuple[int, ...] = (64,),
        layers_per_block: int = 1,
        act_fn: str = "silu",
        latent_channels: int = 3,
        sample_size: int = 32,
        num_vq_embeddings: int = 256,
        norm_num_groups: int = 32,
        vq_embed_dim: int | None = None,
        scaling_factor: float | None = 1.0,
        norm_type: str = "group",
        mid_block_add_attention: bool = True,
        lookup_from_codebook: bool = False,
        force_upcast: bool = False,
        shift_factor: float = 0.0,
        latents_mean: tuple[float, ...] | None = None,
        latents_std: tuple[float, ...] | None = None,
        quantizer: dict[str, Any] | None = None,
        backbone: str = "stock",
    ) -> None:
        super().__init__()
        if backbone not in ("stock", "2017"):
            raise ValueError(f"backbone is {backbone!r}, but must be 'stock' or '2017'")
        quantizer = dict(quantizer or {"type": "vector"})
        num_codes, code_dim = _size(quantizer, num_vq_embeddings, vq_embed_dim, latent_channels)
        if norm_type not in ("group", "spatial"):
            raise ValueError(f"norm_type is {norm_type!r}, but must be 'group' or 'spatial'")
        if norm_type == "spatial" and code_dim != latent_channels:
            raise ValueError(
                f"vq_embed_dim is {code_dim} and latent_channels is {latent_channels}, but must be the "
                "same where norm_type is 'spatial'"
            )
        shared: dict[str, Any] = {
            "block_out_channels": block_out_channels,
            "layers_per_block": layers_per_block,
            "act_fn": act_fn,
            "norm_num_groups": norm_num_groups,
            "mid_block_add_attention": mid_block_add_attention,
        }
        if backbone == "2017":
            widths: dict[str, Any] = {
                "block_out_channels": block_out_channels,
                "layers_per_block": layers_per_block,
            }
            self.encoder = Encoder2017(in_channels, latent_channels, **widths)
            self.decoder = Decoder2017(latent_channels, out_channels, **widths)
        else:
            self.encoder = Encoder(
                in_channels, latent_channels, down_block_types=down_block_types, double_z=False, **shared
            )
            self.decoder = Decoder(
                latent_channels, out_channels, up_block_types=up_block_types, norm_type=norm_type, **shared
            )
        self.quant_conv = nn.Conv2d(latent_channels, code_dim, 1)
        self.quantize: Quantizer = create_quantizer(
            **{**quantizer, "num_codes": num_codes, "code_dim": code_dim}
        )
        self.post_quant_conv = nn.Conv2d(code_dim, latent_channels, 1)
        if num_codes != num_vq_embeddings or code_dim != (vq_embed_dim or latent_channels):
            self.change_config(num_vq_embeddings=num_codes, vq_embed_dim=code_dim)
        if self.stock_objection is not None:
            self.register_to_config(_requires=f"latentae.load_autoencoder: {self.stock_objection}")
        self._check_normalisation()
        self._start_whole(sample_size)

    def enable_group_offload(self, *arguments: Any, **options: Any) -> None:
        """Refuses to: a group's weights are fetched when its module is called, and codes are read otherwise.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"{type(self).__name__} does not support group offloading, because its codebook is read without "
            "a call to its module: give the pipeline exclude_modules='vae', or call enable_model_cpu_offload"
        )

    @apply_forward_hook
    def encode(self, x: Tensor, return_dict: bool = True) -> EncoderOutput | tuple[Tensor]:
        """Continuous latents [B, d, h, w] of images [B, C, H, W] in [−1, 1].

        Sides that the downsampling factor does not divide are padded by repeating the edge.

        Raises:
            ValueError: wrong shape, channel count, dtype or range, or images smaller than one latent.
        """
        self._check_images(x)
        latents = self._encode_in_pieces(self._encode_whole, self._pad(x))
        if not return_dict:
            return (latents,)
        return EncoderOutput(latents=latents, latent_dist=PointDistribution(latents))

    @apply_forward_hook
    def decode(
        self,
        h: Tensor,
        force_not_quantize: bool = False,
        return_dict: bool = True,
        shape: tuple[int, int, int, int] | None = None,
        generator: torch.Generator | None = None,
        size: tuple[int, int] | None = None,
    ) -> DecoderOutput | tuple[Tensor, Tensor]:
        """Images [B, C, H, W] of unscaled latents [B, d, h, w], which are quantized first.

        Args:
            h: the latents; with ``force_not_quantize`` they are decoded as they are, or looked up where
                ``config.lookup_from_codebook`` says that they are indices.
            shape: (B, h, w, d) of such indices.
            generator: accepted because pipelines pass it; nothing is random here.
            size: (H, W) to crop the images to.

        Raises:
            ValueError: latents of another shape, channel count or dtype, or an index outside the codebook.
        """
        if force_not_quantize and self.config.lookup_from_codebook:
            h = self.codes_to_latents(h if shape is None else self._as_maps(h, shape))
        else:
            self._check_latents(h, self.quantize.code_dim)
        commit_loss = torch.zeros((), device=h.device)
        if not force_not_quantize:
            quantized = self.quantize(h)
            commit_loss = quantized.loss
            h = quantized.quantized
        images = self._decode(h, size)
        return DecoderOutput(sample=images, commit_loss=commit_loss) if return_dict else (images, commit_loss)

    @property
    def stock_objection(self) -> str | None:
        """Why diffusers' VQModel cannot hold the weights, in a clause; None where it can."""
        if self.config.backbone != "stock":
            return f"diffusers' VQModel cannot hold backbone {self.config.backbone!r}"
        if not self.quantize.is_euclidean:
            kind = self.config.quantizer["type"]
            return f"diffusers' VQModel holds one table of codes, which quantizer {kind!r} is not"
        return None

    @property
    def fits_stock_class(self) -> bool:
        """Whether diffusers' VQModel can hold the weights, or a table of codes written out from them."""
        return self.stock_objection is None

    def write_out_codebook(self) -> bool:
        """Puts a plain codebook in place of the quantizer, which gives every latent the code it had.

        Returns:
            False where the quantizer had a plain one already, and nothing has changed.

        Raises:
            ValueError: there is no such codebook.
        """
        if isinstance(self.quantize, VectorQuantizer | EMAQuantizer):
            return False
        self.use_plain_codebook(plain_quantizer(self.quantize))
        return True

    @torch.no_grad()
    def move_latents(self, change: LatentMap) -> None:
        """Changes ``quant_conv`` in place, so that latents z become A z + b; codes stay where they are."""
        conv = self.quant_conv
        matrix, shift = (to_float64_on_cpu(part) for part in change)
        conv.weight.copy_(torch.einsum("ij,jchw->ichw", matrix, to_float64_on_cpu(conv.weight)))
        assert conv.bias is not None
        conv.bias.copy_(matrix @ to_float64_on_cpu(conv.bias) + shift)

    def use_plain_codebook(self, plain: VectorQuantizer) -> None:
        """Puts a plain codebook of the same size in place of the quantizer."""
        self.quantize = plain
        self.change_config(quantizer={"type": "vector"})

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        change: Callable[[Tensor], Tensor] | None = None,
    ) -> AutoencoderOutput | tuple[Tensor, Tensor]:
        """Reconstruction of images [B, C, H, W] in [−1, 1], of any size, with the quantizer's losses.

        ``sample_posterior``, ``generator`` and ``noise`` are a KL-VAE's; nothing is random here. ``change``
        is as there, done before quantization.
        """
        latents = self.encode(sample).latents
        quantized = self.quantize(latents if change is None else change(latents))
        height, width = sample.shape[-2:]
        images = self._decode(quantized.quantized, (height, width) if change is None else None)
        if not return_dict:
            return images, quantized.loss
        return AutoencoderOutput(
            sample=images,
            latents=latents,
            commit_loss=quantized.loss,
            losses=quantized.losses,
            indices=quantized.indices,
        )

    def to_diffusers(self) -> VQModel:
        """A stock VQModel with the same weights, in eval mode, which loads without latentae.

        Adapters are merged, fused projections split, and quantised weights turned into floats. Warns where
        the latents' normalisation is more than a scale, since VQModel has no place for it.

        Raises:
            ValueError: VQModel cannot hold the model; weights that are on the meta device, sharded, or
                quantised beyond return.
        """
        if self.stock_objection is not None:
            raise ValueError(
                f"{self.stock_objection}; save_pretrained keeps the model, and latentae.load_autoencoder "
                "opens it"
            )
        if self.config.shift_factor or self.config.latents_mean is not None:
            warnings.warn(
                "a stock VQModel keeps scaling_factor only, not shift_factor, latents_mean or latents_std; "
                "scripts/latent_stats.py folds the mean into the weights",
                stacklevel=2,
            )
        config = {k: v for k, v in self.config.items() if k not in _OWN_KEYS and not k.startswith("_")}
        stock = VQModel(**config)
        wanted = stock.state_dict().keys()
        own = plain(self)
        state = {key: value for key, value in own.state_dict().items() if key in wanted}
        stock.load_state_dict({**state, "quantize.embedding.weight": own.quantize.euclidean_codebook()})
        return self._like_self(stock)

    def _encode_whole(self, images: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(images))

    def _decode(self, quantized: Tensor, size: tuple[int, int] | None) -> Tensor:
        images = self._decode_in_pieces(self._images, quantized)
        return images if size is None else images[..., : size[0], : size[1]]

    def _images(self, quantized: Tensor) -> Tensor:
        spatial = self.config.norm_type == "spatial"
        return self.decoder(self.post_quant_conv(quantized), quantized if spatial else None)


def _size(
    quantizer: dict[str, Any], num_codes: int, code_dim: int | None, latent_channels: int
) -> tuple[int, int]:
    """Number and length of the codes; what is left at its default gives way to what the quantizer knows."""
    if own_size(**quantizer) is None:
        code_dim = code_dim or latent_channels
    elif num_codes == _STOCK_NUM_CODES:
        return quantizer_size(**{**quantizer, "code_dim": code_dim})
    return quantizer_size(**{**quantizer, "num_codes": num_codes, "code_dim": code_dim})


class VQGAN(VQVAE):
    """A VQVAE trained with a perceptual and an adversarial loss; same weights, same interface."""


# Pipelines record a component as (top module, class name), and load it from there.
VQVAE.__module__ = VQGAN.__module__ = "latentae"
