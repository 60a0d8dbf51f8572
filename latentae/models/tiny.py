"""TAESD (madebyollin), a tiny autoencoder, usually one with the latents of a larger VAE."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from latentae.models.checkpoints.configs import embed_config
from latentae.models.latent import AutoencoderOutput, LatentAutoencoder
from latentae.models.tiny_layers import build_layers, layers_of, shuffle_of

_STOCK_LAYERS = {"conv", "relu", "block", "strided_conv_without_bias", "conv_without_bias", "upsample"}


class TinyAutoencoder(LatentAutoencoder, AutoencoderTiny):
    """diffusers' AutoencoderTiny behind the common interface. It has no posterior.

    The latents of TAESD are already scaled, as the family's denoiser expects them. The decoder first squeezes
    them into (−3, 3) by 3 · tanh(z / 3). ``forward`` decodes them unchanged; the stock class rounds them to 8
    bits first.

    Args:
        in_channels, out_channels, encoder_block_out_channels, decoder_block_out_channels, act_fn,
        upsample_fn, latent_channels, upsampling_scaling_factor, num_encoder_blocks, num_decoder_blocks,
        latent_magnitude, latent_shift, force_upcast, scaling_factor, shift_factor: as in the stock class.
        encoder_layers, decoder_layers: the layers as ``build_layers`` takes them, for editions of TAESD that
            the stock class cannot hold; None means the stock class's. The decoder's layers come after its
            clamp. The lists of widths still need one entry per level.
        upscale: 2 or 4 for a decoder whose images are that many times as large as the encoder's. It is part
            of the factor of the pixel shuffle that ``decoder_layers`` end with. All sizes, also ``size`` of
            ``decode``, are counted in the encoder's pixels.
    """

    _stock_class = AutoencoderTiny
    post_quant_conv = None

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        encoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64),
        decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64),
        act_fn: str = "relu",
        upsample_fn: str = "nearest",
        latent_channels: int = 4,
        upsampling_scaling_factor: int = 2,
        num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3),
        num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1),
        latent_magnitude: int = 3,
        latent_shift: float = 0.5,
        force_upcast: bool = False,
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
        encoder_layers: list[str] | None = None,
        decoder_layers: list[str] | None = None,
        upscale: int = 1,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            out_channels=out_channels,
            encoder_block_out_channels=encoder_block_out_channels,
            decoder_block_out_channels=decoder_block_out_channels,
            act_fn=act_fn,
            upsample_fn=upsample_fn,
            latent_channels=latent_channels,
            upsampling_scaling_factor=upsampling_scaling_factor,
            num_encoder_blocks=num_encoder_blocks,
            num_decoder_blocks=num_decoder_blocks,
            latent_magnitude=latent_magnitude,
            latent_shift=latent_shift,
            force_upcast=force_upcast,
            scaling_factor=scaling_factor,
            shift_factor=shift_factor,
        )
        if encoder_layers is not None:
            self.encoder.layers = build_layers(encoder_layers)
        if decoder_layers is not None:
            self.decoder.layers = build_layers(decoder_layers)
            # Pipelines derive the factor from the number of levels.
            folds, rest = divmod(shuffle_of(decoder_layers), upscale)
            if rest:
                raise ValueError(
                    f"upscale is {upscale}, but decoder_layers end with {decoder_layers[-1]}: the pixel "
                    "shuffle must have a multiple of upscale as its factor"
                )
            unfolded = decoder_block_out_channels[-1:] * (folds.bit_length() - 1)
            self.register_to_config(block_out_channels=(*decoder_block_out_channels, *unfolded))
        elif upscale != 1:
            raise ValueError(f"upscale is {upscale}, but there are no decoder_layers that make larger images")
        self.register_to_config(batch_norm_eps=0.0)  # FLUX.2 pipelines compute with it
        self._finish_config()
        self.tile_latent_min_size = self.tile_sample_min_size // self.downsampling_factor

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """diffusers' method, but silent about the entries that the constructor derives."""
        derived = ("block_out_channels", "batch_norm_eps")
        given = {name: value for name, value in config_dict.items() if name not in derived}
        return super().extract_init_dict(given, **kwargs)

    @property
    def first_layer(self) -> nn.Conv2d:
        """The encoder's first convolution."""
        return _convs(self.encoder)[0]

    @property
    def last_encoder_layer(self) -> nn.Conv2d:
        """The encoder's last convolution."""
        return _convs(self.encoder)[-1]

    @property
    def bn(self) -> nn.BatchNorm2d:
        """A batch normalisation that changes nothing, whose statistics FLUX.2 pipelines apply.

        They normalise 2×2 patches of the latents by it, [4c] each. The latents of TAESD for FLUX.2 are
        normalised already.
        """
        return nn.BatchNorm2d(4 * self.config.latent_channels, eps=0.0, affine=False).eval()

    @property
    def last_layer(self) -> nn.Conv2d:
        """The decoder's last convolution."""
        return _convs(self.decoder)[-1]

    @property
    def output_gain(self) -> float:
        """Returns 2: the last layer makes images in [0, 1], and the model's images are in [−1, 1]."""
        return 2.0

    @property
    def stock_objection(self) -> str | None:
        """Why diffusers' AutoencoderTiny cannot hold the weights, as a clause; None if it can."""
        if self.config.encoder_layers is None and self.config.decoder_layers is None:
            return None
        if self.upscale > 1:
            return (
                "diffusers' AutoencoderTiny cannot hold a decoder whose images are "
                f"{self.upscale} times as large as the encoder's"
            )
        layers = [layer for half in layers_of(self.config) for layer in half]
        kinds = {layer.split()[0] for layer in layers}
        if kinds <= _STOCK_LAYERS:
            return "diffusers' AutoencoderTiny cannot hold levels of several widths"
        return "diffusers' AutoencoderTiny has no layers like those of this edition of TAESD"

    @apply_forward_hook
    def decode(
        self,
        x: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
        size: tuple[int, int] | None = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """Decodes latents [B, c, h, w] to images [B, C, H, W], cropped to ``size`` (H, W)."""
        self._check_latents(x, self.config.latent_channels)
        images = self._decode_in_pieces(x, size)
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

        The arguments are those of ``KLVAE.forward``. ``sample_posterior``, ``generator`` and ``noise`` are
        not used: there is no posterior.
        """
        if latents is None:
            latents = self.encode(sample).latents
        if change is None:
            images = self.decode(latents, size=sample.shape[-2:]).sample
        else:
            images = self.decode(change(latents)).sample
        return AutoencoderOutput(sample=images, latents=latents) if return_dict else (images,)

    def take_scale(self, teacher: LatentAutoencoder) -> None:
        """Sets the scale to 1 and the shift to 0: TAESD's latents are what its teacher's denoiser sees."""
        self.change_config(scaling_factor=1.0, shift_factor=0.0)

    def to_diffusers(self) -> AutoencoderTiny:
        """Returns a stock AutoencoderTiny with the same weights, in eval mode.

        Raises:
            ValueError: AutoencoderTiny cannot hold the model.
        """
        self._check_fits_stock_class()
        return self._build_stock(self.state_dict())

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        *args: Any,
        **arguments: Any,
    ) -> None:
        """Writes the stock class's folder if that class can hold the weights."""
        if not self.fits_stock_class:
            super().save_pretrained(save_directory, is_main_process, *args, **arguments)
            return
        self.to_diffusers().save_pretrained(save_directory, is_main_process, *args, **arguments)
        if is_main_process:
            embed_config(Path(save_directory))

    def _encode_whole(self, images: Tensor) -> Tensor:
        return self.encoder(images)

    def _decode_whole(self, latents: Tensor) -> Tensor:
        return self.decoder(latents)

    def _normalisation(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        config = self.config
        return latents.new_full((), config.shift_factor), latents.new_full((), config.scaling_factor)


def _convs(half: nn.Module) -> list[nn.Conv2d]:
    """Returns the convolutions of an encoder or decoder that are no part of a block."""
    return [layer for layer in half.layers if isinstance(layer, nn.Conv2d)]  # type: ignore[union-attr]


# Pipelines record a component as (top module, class name) and load it from there.
TinyAutoencoder.__module__ = "latentae"
