"""TAESD (madebyollin), a tiny autoencoder with the latents of a larger VAE; for evaluation only."""

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
from latentae.models.exact_tiling import Program, Residual, steps
from latentae.models.exact_tiling.programs import tiny_block
from latentae.models.latent import AutoencoderOutput, LatentAutoencoder


class TinyBlock(AutoencoderTinyBlock):
    """TAESD's residual block: three 3×3 convolutions with ReLU between them.

    Args:
        in_channels, out_channels: if they differ, the skip connection has a 1×1 convolution.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, "relu")


class PooledBlock(TinyBlock):
    """The block of TAESD for FLUX.2, which adds a branch with group normalisation to its input: x + pool(x).

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
        """Maps [B, in_channels, h, w] to [B, out_channels, h, w]."""
        return super().forward(x + self.pool(x))


@steps.register
def _(block: PooledBlock) -> Program:
    return [Residual(steps(block.pool)), *tiny_block(block)]


def _conv(**arguments: Any) -> Callable[[int, int], nn.Module]:
    return lambda inputs, outputs: nn.Conv2d(inputs, outputs, 3, padding=1, **arguments)


# First word of a layer's description -> what builds it from the channels that follow.
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
    """Builds an encoder or decoder of layers such as ``["conv 3 64", "block 64 64", "upsample"]``.

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
                f"{description!r} is not a layer of TinyAutoencoder: it must be one of {', '.join(_LAYERS)}; "
                "a convolution or block is followed by its input and output channels"
            ) from error
    return nn.Sequential(*layers)


class TinyAutoencoder(LatentAutoencoder, AutoencoderTiny):
    """diffusers' AutoencoderTiny behind the common interface, for evaluation only.

    Its latents are already scaled, as the family's denoiser expects them. ``forward`` decodes them unchanged;
    the stock class rounds them to 8 bits first.

    Args:
        in_channels, out_channels, encoder_block_out_channels, decoder_block_out_channels, act_fn,
        upsample_fn, latent_channels, upsampling_scaling_factor, num_encoder_blocks, num_decoder_blocks,
        latent_magnitude, latent_shift, force_upcast, scaling_factor, shift_factor: as in the stock class.
        encoder_layers, decoder_layers: the layers as ``build_layers`` takes them, for editions of TAESD that
            the stock class cannot hold; None means the stock class's. The decoder's layers come after its
            clamp. The lists of widths still need one entry per level.
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
            if "pixel_shuffle" in decoder_layers:  # pipelines derive the factor from the number of levels
                widths = (*decoder_block_out_channels, decoder_block_out_channels[-1])
                self.register_to_config(block_out_channels=widths)
        self._finish_config()
        self.tile_latent_min_size = self.tile_sample_min_size // self.downsampling_factor

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """diffusers' method, but silent about ``block_out_channels``, which the constructor derives."""
        given = {name: value for name, value in config_dict.items() if name != "block_out_channels"}
        return super().extract_init_dict(given, **kwargs)

    @property
    def last_layer(self) -> nn.Conv2d:
        """The decoder's last convolution."""
        return [layer for layer in self.decoder.layers if isinstance(layer, nn.Conv2d)][-1]

    @property
    def stock_objection(self) -> str | None:
        """Why diffusers' AutoencoderTiny cannot hold the weights, as a clause; None if it can."""
        if self.config.encoder_layers is None and self.config.decoder_layers is None:
            return None
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

    def forward(self, sample: Tensor, return_dict: bool = True) -> AutoencoderOutput | tuple[Tensor]:
        """Reconstructs images [B, C, H, W] in [−1, 1] of any size."""
        latents = self.encode(sample).latents
        images = self.decode(latents, size=sample.shape[-2:]).sample
        return AutoencoderOutput(sample=images, latents=latents) if return_dict else (images,)

    def train(self, mode: bool = True) -> TinyAutoencoder:
        """Raises ValueError if ``mode`` is true: it has no posterior and no regulariser to train."""
        if mode:
            raise ValueError("an AutoencoderTiny is for evaluation only; train a KLVAE, VQVAE or VQGAN")
        super().train(False)
        return self

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
        return latents.new_tensor(self.config.shift_factor), latents.new_tensor(self.config.scaling_factor)


# Pipelines record a component as (top module, class name) and load it from there.
TinyAutoencoder.__module__ = "latentae"
