"""TAESD (madebyollin), the tiny stand-in for a family's VAE, to be measured beside the models it imitates."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from latentae.models.checkpoints.configs import embed_config
from latentae.models.latent import AutoencoderOutput, EncoderOutput, LatentAutoencoder, PointDistribution

# What a stock AutoencoderTiny has no parameter for.
_OWN_KEYS = ("block_out_channels", "encoder_layers", "decoder_layers")


class TinyBlock(AutoencoderTinyBlock):
    """TAESD's residual block: three 3×3 convolutions with ReLU between them.

    Args:
        in_channels, out_channels: where they differ, a 1×1 convolution is on the skip connection.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, "relu")


class PooledBlock(TinyBlock):
    """The block of TAESD for FLUX.2, whose input is normalised over all positions beside it: x + pool(x).

    Args:
        in_channels, out_channels: as in ``TinyBlock``.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels)
        hidden = 4 * in_channels
        self.pool = nn.Sequential(
            nn.Conv2d(in_channels, hidden, 1, bias=False),
            nn.GroupNorm(4, hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, in_channels, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, h, w] to [B, out_channels, h, w]."""
        return super().forward(x + self.pool(x))


def _conv(**arguments: Any) -> Callable[[int, int], nn.Module]:
    return lambda inputs, outputs: nn.Conv2d(inputs, outputs, 3, padding=1, **arguments)


# By the first word of a layer's description; the channels that follow are their arguments.
_LAYERS: dict[str, Callable[..., nn.Module]] = {
    "conv": _conv(),
    "conv_without_bias": _conv(bias=False),
    "strided_conv": _conv(stride=2),
    "strided_conv_without_bias": _conv(stride=2, bias=False),
    "block": TinyBlock,
    "pooled_block": PooledBlock,
    "relu": nn.ReLU,
    "upsample": lambda: nn.Upsample(scale_factor=2),
    "pixel_unshuffle": lambda: nn.PixelUnshuffle(2),
    "pixel_shuffle": lambda: nn.PixelShuffle(2),
}


def build_layers(descriptions: Sequence[str]) -> nn.Sequential:
    """The layers of one half, such as ``["conv 3 64", "block 64 64", "strided_conv_without_bias 64 64"]``.

    Raises:
        ValueError: an unknown layer, or the wrong number of channels for one.
    """
    layers = []
    for description in descriptions:
        kind, *channels = description.split()
        try:
            layers.append(_LAYERS[kind](*map(int, channels)))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{description!r} is no layer of a TinyAutoencoder: it must be one of {', '.join(_LAYERS)}, "
                "with input and output channels after that of a convolution or a block"
            ) from error
    return nn.Sequential(*layers)


class TinyAutoencoder(LatentAutoencoder, AutoencoderTiny):
    """diffusers' AutoencoderTiny behind the common interface, for evaluation only.

    Its latents are those that the family's denoiser sees: already scaled. ``forward`` decodes them as they
    are, where the stock class's rounds them to 8 bits on the way.

    Args:
        in_channels, out_channels, encoder_block_out_channels, decoder_block_out_channels, act_fn,
        upsample_fn, latent_channels, upsampling_scaling_factor, num_encoder_blocks, num_decoder_blocks,
        latent_magnitude, latent_shift, force_upcast, scaling_factor, shift_factor: as in the stock class.
        encoder_layers, decoder_layers: every layer of a half, as ``build_layers`` takes them, for editions
            of TAESD that the stock class cannot hold; None takes the stock class's. The decoder's begin after
            its clamp. Each level has a width beside them, as in the stock class.
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
            if "pixel_shuffle" in decoder_layers:  # pipelines count levels to know the factor
                widths = (*decoder_block_out_channels, decoder_block_out_channels[-1])
                self.register_to_config(block_out_channels=widths)
        if self.stock_objection is not None:
            self.register_to_config(_requires=f"latentae.load_autoencoder: {self.stock_objection}")
        self._check_normalisation()
        self.tile_latent_min_size = self.tile_sample_min_size // self.downsampling_factor

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """diffusers' own, without its warning of ``block_out_channels``, which the constructor derives."""
        told = {name: value for name, value in config_dict.items() if name != "block_out_channels"}
        return super().extract_init_dict(told, **kwargs)

    @property
    def last_layer(self) -> nn.Conv2d:
        """The decoder's last convolution."""
        return [layer for layer in self.decoder.layers if isinstance(layer, nn.Conv2d)][-1]

    @property
    def stock_objection(self) -> str | None:
        """Why diffusers' AutoencoderTiny cannot hold the weights, in a clause; None where it can."""
        if self.config.encoder_layers is None and self.config.decoder_layers is None:
            return None
        return "diffusers' AutoencoderTiny has no layers like those of this edition of TAESD"

    @property
    def fits_stock_class(self) -> bool:
        """Whether diffusers' AutoencoderTiny can hold the weights."""
        return self.stock_objection is None

    @apply_forward_hook
    def encode(self, x: Tensor, return_dict: bool = True) -> EncoderOutput | tuple[Tensor]:
        """Latents [B, c, h, w] of images [B, C, H, W] in [−1, 1], of any size."""
        self._check_images(x)
        latents = self._encode_in_pieces(self._encode_whole, self._pad(x))
        if not return_dict:
            return (latents,)
        return EncoderOutput(latents=latents, latent_dist=PointDistribution(latents))

    @apply_forward_hook
    def decode(
        self,
        x: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
        size: tuple[int, int] | None = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """Images [B, C, H, W] of latents [B, c, h, w], cropped to ``size`` (H, W)."""
        self._check_latents(x, self.config.latent_channels)
        images = self._decode_in_pieces(self.decoder, x)
        if size is not None:
            images = images[..., : size[0], : size[1]]
        return DecoderOutput(sample=images) if return_dict else (images,)

    def forward(self, sample: Tensor, return_dict: bool = True) -> AutoencoderOutput | tuple[Tensor]:
        """Reconstruction of images [B, C, H, W] in [−1, 1], of any size."""
        latents = self.encode(sample).latents
        height, width = sample.shape[-2:]
        images = self.decode(latents, size=(height, width)).sample
        return AutoencoderOutput(sample=images, latents=latents) if return_dict else (images,)

    def train(self, mode: bool = True) -> TinyAutoencoder:
        """Refuses to: there is no posterior to sample and no regulariser to train with.

        Raises:
            ValueError: ``mode`` is true.
        """
        if mode:
            raise ValueError("an AutoencoderTiny is read for evaluation only; train a KLVAE, VQVAE or VQGAN")
        super().train(False)
        return self

    def to_diffusers(self) -> AutoencoderTiny:
        """A stock AutoencoderTiny with the same weights, in eval mode.

        Raises:
            ValueError: AutoencoderTiny cannot hold the model.
        """
        if self.stock_objection is not None:
            raise ValueError(
                f"{self.stock_objection}; save_pretrained keeps the model, and latentae.load_autoencoder "
                "opens it"
            )
        config = {k: v for k, v in self.config.items() if k not in _OWN_KEYS and not k.startswith("_")}
        stock = AutoencoderTiny(**config)
        stock.load_state_dict(self.state_dict())
        return self._like_self(stock)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        *args: Any,
        **arguments: Any,
    ) -> None:
        """Writes the stock class's folder wherever that can hold the weights."""
        if not self.fits_stock_class:
            super().save_pretrained(save_directory, is_main_process, *args, **arguments)
            return
        self.to_diffusers().save_pretrained(save_directory, is_main_process, *args, **arguments)
        if is_main_process:
            embed_config(Path(save_directory))

    def _encode_whole(self, images: Tensor) -> Tensor:
        return self.encoder(images)

    def _normalisation(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        return latents.new_tensor(self.config.shift_factor), latents.new_tensor(self.config.scaling_factor)


# Pipelines record a component as (top module, class name), and load it from there.
TinyAutoencoder.__module__ = "latentae"
