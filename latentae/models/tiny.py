"""TAESD (madebyollin), the tiny stand-in for a family's VAE, to be measured beside the models it imitates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from latentae.models.latent import AutoencoderOutput, EncoderOutput, LatentAutoencoder, PointDistribution


class TinyAutoencoder(LatentAutoencoder, AutoencoderTiny):
    """diffusers' AutoencoderTiny behind the common interface, for evaluation only.

    Its latents are those that the family's denoiser sees: already scaled. ``forward`` decodes them as they
    are, where the stock class's rounds them to 8 bits on the way.
    """

    post_quant_conv = None

    @property
    def last_layer(self) -> nn.Conv2d:
        """The decoder's last convolution."""
        return self.decoder.layers[-1]

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
        """A stock AutoencoderTiny with the same weights, in eval mode."""
        names = {"block_out_channels", *(name for name in self.config if name.startswith("_"))}
        stock = AutoencoderTiny(**{name: value for name, value in self.config.items() if name not in names})
        stock.load_state_dict(self.state_dict())
        return self._like_self(stock)

    def save_pretrained(self, save_directory: str | Path, **arguments: Any) -> None:
        """Writes the stock class's folder."""
        self.to_diffusers().save_pretrained(save_directory, **arguments)

    def _encode_whole(self, images: Tensor) -> Tensor:
        return self.encoder(images)

    def _normalisation(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        return latents.new_tensor(self.config.shift_factor), latents.new_tensor(self.config.scaling_factor)
