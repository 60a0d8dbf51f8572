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
from latentae.models.latent import AutoencoderOutput, LatentAutoencoder
from latentae.models.plain import fuse_projections, plain
from latentae.quantizers import (
    QUANTIZERS,
    EMAQuantizer,
    LatentMap,
    Quantizer,
    VectorQuantizer,
    create_quantizer,
    implied_size,
    plain_quantizer,
    quantizer_size,
)

_STOCK_NUM_CODES = 256  # VQModel's default


class VQVAE(LatentAutoencoder, ModelMixin, AttentionMixin, ConfigMixin, PeftAdapterMixin):
    """The backbone and parameter names of diffusers' VQModel with one of our quantizers.

    The latents for diffusion are the continuous ones before quantization; ``decode`` quantizes them first, as
    in latent diffusion (arXiv 2112.10752, section 3.1). Discrete tokens for autoregressive and masked models
    come from ``encode_indices``, and ``decode_indices`` turns them into images.

    Args:
        in_channels, out_channels, down_block_types, up_block_types, block_out_channels, layers_per_block,
        act_fn, sample_size, norm_num_groups, scaling_factor, latents_mean, latents_std,
        mid_block_add_attention: as in ``KLVAE``.
        latent_channels: channels of the encoder's output, before ``quant_conv``.
        num_vq_embeddings: number of codes; for a quantizer with several tables, of each table.
        vq_embed_dim: length of a code, for a grouped quantizer of all groups together; None means
            ``latent_channels``. Quantizers whose arguments imply the number and length of the codes, such as
            FSQ's levels, set both in the config.
        norm_type: ``group``, or ``spatial`` for a decoder whose normalisations see the codes (MoVQ, arXiv
            2209.09002), which needs codes as long as the latents.
        lookup_from_codebook, force_upcast: read by diffusers pipelines, as in VQModel.
        shift_factor: as in ``KLVAE``.
        quantizer: its ``type`` and its arguments other than its size; None means ``{"type": "vector"}``.
        backbone: ``stock``, VQModel's, or ``2017``, the strided convolutions of the first VQ-VAE. The latter
            has no stock class, and uses only the widths and ``layers_per_block``.
    """

    _stock_class = VQModel
    _supports_gradient_checkpointing = True
    _supports_group_offloading = False  # as in VQModel: the codebook is read without calling its module
    _skip_layerwise_casting_patterns = ("quantize",)
    _no_split_modules = ("ResnetBlock2D", *(quantizer.__name__ for quantizer in QUANTIZERS.values()))

    # AttentionMixin does not fuse the attention class that autoencoders consist of.
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
        num_codes, code_dim = _codebook_size(quantizer, num_vq_embeddings, vq_embed_dim, latent_channels)
        if norm_type not in ("group", "spatial"):
            raise ValueError(f"norm_type is {norm_type!r}, but must be 'group' or 'spatial'")
        if norm_type == "spatial" and code_dim != latent_channels:
            raise ValueError(
                f"vq_embed_dim is {code_dim} and latent_channels is {latent_channels}, but must be the "
                "same if norm_type is 'spatial'"
            )
        widths: dict[str, Any] = {
            "block_out_channels": block_out_channels,
            "layers_per_block": layers_per_block,
        }
        if backbone == "2017":
            self.encoder = Encoder2017(in_channels, latent_channels, **widths)
            self.decoder = Decoder2017(latent_channels, out_channels, **widths)
        else:
            shared = {
                **widths,
                "act_fn": act_fn,
                "norm_num_groups": norm_num_groups,
                "mid_block_add_attention": mid_block_add_attention,
            }
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
        self._finish_config()
        self._reset_tiling(sample_size)

    @property
    def num_codes(self) -> int:
        """Number of codes of a table: indices are in [0, num_codes)."""
        return self.quantize.num_codes

    @property
    def latents_channels(self) -> int:
        """Channels of the latents that ``encode`` returns: the length of a code."""
        return self.quantize.code_dim

    @property
    def stock_objection(self) -> str | None:
        """Why diffusers' VQModel cannot hold the weights, as a clause; None if it can."""
        if self.config.backbone != "stock":
            return f"diffusers' VQModel cannot hold backbone {self.config.backbone!r}"
        if not self.quantize.is_euclidean:
            kind = self.config.quantizer["type"]
            return f"diffusers' VQModel holds one table of codes, which quantizer {kind!r} is not"
        return None

    def enable_group_offload(self, *arguments: Any, **options: Any) -> None:
        """Raises ValueError: the codebook is read without a call to its module, which would fetch it."""
        raise ValueError(
            f"{type(self).__name__} does not support group offloading, because its codebook is read without "
            "a call to its module: give the pipeline exclude_modules='vae', or call enable_model_cpu_offload"
        )

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
        """Quantizes unscaled latents [B, d, h, w] and decodes them to images [B, C, H, W].

        Args:
            h: the latents. With ``force_not_quantize`` they are decoded as they are; if
                ``config.lookup_from_codebook`` is also set, they are indices and are looked up.
            shape: (B, h, w, d) of such indices.
            generator: unused; pipelines pass it.
            size: (H, W) to crop the images to.

        Raises:
            ValueError: latents of another shape, channel count or dtype, or an index outside the codebook.
        """
        if force_not_quantize and self.config.lookup_from_codebook:
            if shape is not None:
                tables = () if self.quantize.depth is None else (-1,)
                h = h.reshape(shape[0], *tables, *shape[1:3])
            h = self.codes_to_latents(h)
        else:
            self._check_latents(h, self.quantize.code_dim)
        commit_loss = torch.zeros((), device=h.device)
        if not force_not_quantize:
            quantized = self.quantize(h)
            commit_loss = quantized.loss
            h = quantized.quantized
        images = self._decode_in_pieces(h, size)
        return DecoderOutput(sample=images, commit_loss=commit_loss) if return_dict else (images, commit_loss)

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        change: Callable[[Tensor], Tensor] | None = None,
        latents: Tensor | None = None,
    ) -> AutoencoderOutput | tuple[Tensor, Tensor]:
        """Reconstructs images [B, C, H, W] in [−1, 1] of any size, and computes the quantizer's losses.

        The arguments are those of ``KLVAE.forward``. ``sample_posterior``, ``generator`` and ``noise`` are
        not used; ``change`` is applied, and ``latents`` are, before quantization.
        """
        if latents is None:
            latents = self.encode(sample).latents
        quantized = self.quantize(latents if change is None else change(latents))
        height, width = sample.shape[-2:]
        images = self._decode_in_pieces(quantized.quantized, (height, width) if change is None else None)
        if not return_dict:
            return images, quantized.loss
        return AutoencoderOutput(
            sample=images,
            latents=latents,
            commit_loss=quantized.loss,
            losses=quantized.losses,
            indices=quantized.indices,
        )

    def indices_shape(self, height: int, width: int) -> tuple[int, ...]:
        """Returns (h, w), or (depth, h, w) for several tables: the shape of one image's indices.

        Args:
            height, width: of the image, in pixels.
        """
        factor = self.downsampling_factor
        depth = () if self.quantize.depth is None else (self.quantize.depth,)
        return (*depth, -(-height // factor), -(-width // factor))

    @apply_forward_hook
    def encode_indices(self, images: Tensor) -> Tensor:
        """Encodes images [B, C, H, W] in [−1, 1] to indices [B, h, w], or [B, depth, h, w] of several tables.

        Raises:
            ValueError: as in ``encode``; an empty batch; latents that are not finite.
        """
        return self.quantize.indices(self.encode(images).latents)

    @apply_forward_hook
    def decode_indices(self, indices: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Decodes indices [B, h, w] or [B, depth, h, w] to images [B, C, H, W]; undoes ``encode_indices``.

        Args:
            indices: int64 or int32; a residual quantizer also accepts those of its first few tables only.
            size: (H, W) to crop the images to.

        Raises:
            ValueError: another shape, an index outside the codebook, or indices that are not integers.
        """
        return self._decode_in_pieces(self.codes_to_latents(indices), size)

    @apply_forward_hook
    def codes_to_latents(self, indices: Tensor) -> Tensor:
        """Looks up indices, as ``decode_indices`` takes them, and returns quantized latents [B, d, h, w].

        ``decode(latents, force_not_quantize=True)`` turns them into images.

        Raises:
            ValueError: as in ``decode_indices``.
        """
        return self.quantize.codes(indices).to(self.dtype)

    def write_out_codebook(self) -> bool:
        """Replaces the quantizer by a plain codebook that gives every latent the same code.

        Returns:
            False if the quantizer already is a plain codebook; then nothing changes.

        Raises:
            ValueError: no plain codebook is equivalent.
        """
        if isinstance(self.quantize, VectorQuantizer | EMAQuantizer):
            return False
        self.use_plain_codebook(plain_quantizer(self.quantize))
        return True

    def use_plain_codebook(self, plain: VectorQuantizer) -> None:
        """Replaces the quantizer by a plain codebook of the same size."""
        self.quantize = plain
        self.change_config(quantizer={"type": "vector"})

    @torch.no_grad()
    def move_latents(self, change: LatentMap) -> None:
        """Changes ``quant_conv`` in place so that latents z become A z + b; the codes do not change."""
        conv = self.quant_conv
        matrix, shift = (to_float64_on_cpu(part) for part in change)
        conv.weight.copy_(torch.einsum("ij,jchw->ichw", matrix, to_float64_on_cpu(conv.weight)))
        assert conv.bias is not None
        conv.bias.copy_(matrix @ to_float64_on_cpu(conv.bias) + shift)

    def to_diffusers(self) -> VQModel:
        """Returns a stock VQModel with the same weights, in eval mode, which loads without latentae.

        Adapters are merged, fused projections split, and quantised weights turned into floats. Warns if the
        latents' normalisation is more than a scale, since VQModel has no place for it.

        Raises:
            ValueError: VQModel cannot hold the model; weights that are on the meta device, sharded, or
                quantised irreversibly.
        """
        self._check_fits_stock_class()
        if self.config.shift_factor or self.config.latents_mean is not None:
            warnings.warn(
                "a stock VQModel keeps scaling_factor only, not shift_factor, latents_mean or latents_std; "
                "scripts/latent_stats.py folds the mean into the weights",
                stacklevel=2,
            )
        own = plain(self)
        state = {name: value for name, value in own.state_dict().items() if not name.startswith("quantize.")}
        return self._build_stock({**state, "quantize.embedding.weight": own.quantize.euclidean_codebook()})

    def _encode_whole(self, images: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(images))

    def _decode_whole(self, quantized: Tensor) -> Tensor:
        spatial = self.config.norm_type == "spatial"
        return self.decoder(self.post_quant_conv(quantized), quantized if spatial else None)


def _codebook_size(
    quantizer: dict[str, Any], num_codes: int, code_dim: int | None, latent_channels: int
) -> tuple[int, int]:
    """Returns number and length of the codes; sizes left at their defaults give way to the implied ones."""
    if implied_size(**quantizer) is None:
        code_dim = code_dim or latent_channels
    elif num_codes == _STOCK_NUM_CODES:
        return quantizer_size(**{**quantizer, "code_dim": code_dim})
    return quantizer_size(**{**quantizer, "num_codes": num_codes, "code_dim": code_dim})


class VQGAN(VQVAE):
    """A VQVAE trained with a perceptual and an adversarial loss; same weights, same interface."""


# Pipelines record a component as (top module, class name) and load it from there.
VQVAE.__module__ = VQGAN.__module__ = "latentae"
