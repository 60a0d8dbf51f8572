"""The KL-VAE of latent diffusion (Rombach et al. 2022, arXiv 2112.10752)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor

from latentae.models.checkpoints.configs import stock_meaning
from latentae.models.decoders import decoder_objection, replace_decoder
from latentae.models.latent import AutoencoderOutput, LatentAutoencoder, PosteriorOutput
from latentae.models.plain import fuse_projections, plain


class KLVAE(LatentAutoencoder, AutoencoderKL):
    """diffusers' AutoencoderKL with the interface that all latentae models share.

    Weights, key names and config are those of the stock class; each class loads what the other saved. Without
    a KL term, and with the posterior's mode as latents, it is a plain autoencoder.

    Args:
        in_channels, out_channels: channels of the images, normally equal.
        down_block_types, up_block_types: a diffusers block type per level.
        block_out_channels: width of each level; every level but the last halves the resolution.
        layers_per_block: residual blocks per level (the decoder has one more).
        act_fn: activation, ``silu``.
        latent_channels: channels of the latents.
        norm_num_groups: groups of the group normalisation.
        sample_size: the image size of the training, in pixels; also the size of tiles.
        scaling_factor, shift_factor: ``to_latents`` returns (latents − shift) · scale. A scale of None means
            that it is not known yet, a shift of None means 0.
        latents_mean, latents_std: one value per latent channel, used instead of the shift: (latents − mean) ·
            scale / std, as in SDXL pipelines.
        force_upcast: whether SDXL pipelines run the model in float32 when the rest runs in float16.
        use_quant_conv, use_post_quant_conv: 1×1 convolutions around the latents (SD 1 and SDXL have them, SD3
            and FLUX do not).
        mid_block_add_attention: attention at the lowest resolution.
        decoder_block_out_channels, decoder_layers_per_block: of a decoder that is not the encoder's mirror,
            with as many levels; None: the encoder's. Only this class can hold such a model.
        upscale: 2 or 4 for a decoder whose images are that many times as large as the encoder's. All sizes,
            also ``size`` of ``decode``, are counted in the encoder's pixels.
    """

    _stock_class = AutoencoderKL
    fuse_qkv_projections = fuse_projections

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
        latent_channels: int = 4,
        norm_num_groups: int = 32,
        sample_size: int = 32,
        scaling_factor: float | None = 1.0,
        shift_factor: float | None = 0.0,
        latents_mean: tuple[float, ...] | None = None,
        latents_std: tuple[float, ...] | None = None,
        force_upcast: bool = False,
        use_quant_conv: bool = True,
        use_post_quant_conv: bool = True,
        mid_block_add_attention: bool = True,
        decoder_block_out_channels: tuple[int, ...] | None = None,
        decoder_layers_per_block: int | None = None,
        upscale: int = 1,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            out_channels=out_channels,
            down_block_types=down_block_types,
            up_block_types=up_block_types,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            act_fn=act_fn,
            latent_channels=latent_channels,
            norm_num_groups=norm_num_groups,
            sample_size=sample_size,
            scaling_factor=scaling_factor,
            shift_factor=shift_factor or 0.0,  # SD3 and FLUX pipelines calculate with it
            latents_mean=latents_mean,
            latents_std=latents_std,
            force_upcast=force_upcast,
            use_quant_conv=use_quant_conv,
            use_post_quant_conv=use_post_quant_conv,
            mid_block_add_attention=mid_block_add_attention,
        )
        replace_decoder(self)
        self._finish_config()
        self._reset_tiling(sample_size)

    @property
    def stock_objection(self) -> str | None:
        """Why diffusers' AutoencoderKL cannot hold the weights, as a clause; None if it can."""
        return decoder_objection(self.config, self._stock_class)

    @classmethod
    def from_single_file(
        cls, pretrained_model_link_or_path_or_dict: str | None = None, **kwargs: Any
    ) -> KLVAE:
        """diffusers' ``from_single_file``; keys missing in ``original_config`` get the stock defaults."""
        model = super().from_single_file(pretrained_model_link_or_path_or_dict, **kwargs)
        if kwargs.get("original_config") is not None:
            unset = model.config["_use_default_values"]
            given = {name: value for name, value in model.config.items() if name not in unset}
            model.change_config(**stock_meaning(given, AutoencoderKL))
        return model

    @apply_forward_hook
    def encode(
        self, x: Tensor, return_dict: bool = True
    ) -> PosteriorOutput | tuple[DiagonalGaussianDistribution]:
        """Encodes images [B, C, H, W] in [−1, 1] to a posterior, and to its mode as ``latents`` [B, c, h, w].

        Sides that are no multiple of the downsampling factor are padded by repeating the edge.

        Raises:
            ValueError: wrong shape, channel count, dtype or range, or images smaller than one latent.
        """
        self._check_images(x)
        posterior = DiagonalGaussianDistribution(self._encode_in_pieces(self._pad(x)))
        if not return_dict:
            return (posterior,)
        return PosteriorOutput(latent_dist=posterior, latents=posterior.mode())

    @apply_forward_hook
    def decode(
        self,
        z: Tensor,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
        size: tuple[int, int] | None = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """Decodes unscaled latents [B, c, h, w] to images [B, C, H, W].

        Args:
            generator: unused; pipelines pass it.
            size: (H, W) to crop the images to.

        Raises:
            ValueError: latents of another shape, channel count or dtype.
        """
        self._check_latents(z, self.config.latent_channels)
        images = self._decode_in_pieces(z, size)
        return DecoderOutput(sample=images) if return_dict else (images,)

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        change: Callable[[Tensor], Tensor] | None = None,
        latents: Tensor | None = None,
    ) -> AutoencoderOutput | tuple[Tensor]:
        """Reconstructs images [B, C, H, W] in [−1, 1] of any size.

        Args:
            sample: the images.
            sample_posterior: decode a sample of the posterior instead of its mode.
            generator: for that sample.
            noise: [B, c, h, w] standard normal noise for the sample; replaces the generator.
            change: applied to the latents before they are decoded. The size of the reconstruction then
                follows from the changed latents; the output's ``latents`` are the unchanged ones.
            latents: [B, c, h, w] latents of the images, computed beforehand. They are decoded, the encoder
                does not run, and the output has no posterior. ``noise`` and ``sample_posterior`` do nothing.
        """
        posterior = None
        if latents is None:
            posterior = self.encode(sample).latent_dist
            if noise is not None:
                latents = posterior.mean + posterior.std * noise.to(posterior.std.dtype)
            elif sample_posterior:
                latents = posterior.sample(generator=generator)
            else:
                latents = posterior.mode()
        if change is None:
            images = self.decode(latents, size=sample.shape[-2:]).sample
        else:
            images = self.decode(change(latents)).sample
        if not return_dict:
            return (images,)
        if posterior is None:
            return AutoencoderOutput(sample=images, latents=latents)
        return AutoencoderOutput(
            sample=images, latents=latents, mean=posterior.mean, log_variance=posterior.logvar
        )

    def pin_posterior(self) -> None:
        """Sets the log-variance to its minimum for every image, for a plain autoencoder.

        Without a KL term nothing trains the log-variance. It would keep its random initial values, and
        samples would carry noise that the decoder never saw.
        """
        self.set_log_variance(-30.0)

    @torch.no_grad()
    def set_log_variance(self, value: float) -> None:
        """Sets the log-variance of the posterior, the same for every image and position, until it is trained.

        Args:
            value: in [−30, 20], in nats.
        """
        moments = self.encoder.conv_out if self.quant_conv is None else self.quant_conv
        moments.weight[self.config.latent_channels :] = 0
        moments.bias[self.config.latent_channels :] = value

    def to_diffusers(self) -> AutoencoderKL:
        """Returns a stock AutoencoderKL with the same weights, in eval mode, which loads without latentae.

        Adapters are merged, fused projections split, and quantised weights turned into floats.

        Raises:
            ValueError: a decoder that the stock class cannot hold, or weights that are on the meta device,
                sharded, or quantised irreversibly.
        """
        self._check_fits_stock_class()
        return self._build_stock(plain(self).state_dict())

    def _encode_whole(self, images: Tensor) -> Tensor:
        """Returns mean and log-variance [B, 2c, h, w]."""
        moments = self.encoder(images)
        return moments if self.quant_conv is None else self.quant_conv(moments)

    def _decode_whole(self, latents: Tensor) -> Tensor:
        return self.decoder(latents if self.post_quant_conv is None else self.post_quant_conv(latents))


# Pipelines record a component as (top module, class name) and load it from there.
KLVAE.__module__ = "latentae"
