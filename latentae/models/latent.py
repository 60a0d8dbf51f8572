"""The interface all autoencoders share: outputs, input checks, padding, and scaling for a denoiser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.utils import BaseOutput
from torch import Tensor, nn

Stock = TypeVar("Stock", bound=nn.Module)


class PointDistribution:
    """A posterior that is certain of its latents, so that code written for a KL-VAE runs with a VQ model."""

    def __init__(self, latents: Tensor) -> None:
        self.latents = latents

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """The latents; there is nothing to draw, so the generator is left alone."""
        return self.latents

    def mode(self) -> Tensor:
        """The latents."""
        return self.latents


@dataclass
class EncoderOutput(BaseOutput):
    """What ``encode`` returns.

    Attributes:
        latents: [B, c, h, w] the posterior's mode, unscaled.
        latent_dist: the posterior, with ``sample(generator)`` and ``mode()``.
    """

    latents: Tensor
    latent_dist: PointDistribution | DiagonalGaussianDistribution


@dataclass
class AutoencoderOutput(BaseOutput):
    """What ``forward`` returns: the reconstruction and what the losses need.

    Attributes:
        sample: [B, C, H, W] the reconstruction, as large as the images.
        latents: [B, c, h, w] what was decoded (VQ: before quantization), unscaled.
        commit_loss: the sum of ``losses``, under the name diffusers' VQModel gives it.
        losses: regularisers by name, scalars, already weighted.
        indices: [B, h, w] the codes, of VQ models.
        mean, log_variance: [B, c, h, w] the posterior's, of KL models.
    """

    sample: Tensor
    latents: Tensor | None = None
    commit_loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    indices: Tensor | None = None
    mean: Tensor | None = None
    log_variance: Tensor | None = None


class LatentAutoencoder:
    """Mixin of every model: needs ``config``, ``encode``, ``decode`` and ``decoder``."""

    config: Any
    encode: Callable[..., Any]
    decode: Callable[..., Any]
    decoder: Any
    device: Any
    dtype: Any

    @property
    def downsampling_factor(self) -> int:
        """Pixels per latent position along each side."""
        return int(2 ** (len(self.config.block_out_channels) - 1))

    @property
    def last_layer(self) -> nn.Conv2d:
        """The decoder's last convolution, at which the adaptive weight is measured."""
        return self.decoder.conv_out

    def to_latents(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Latents [B, c, h, w] as a denoiser should see them: (sample − shift) · scale.

        Where the config has ``latents_mean`` and ``latents_std``: (sample − mean) · scale / std, by channel.

        Args:
            images: [B, C, H, W] in [−1, 1].
            generator: draws the posterior's sample.

        Raises:
            ValueError: the model's normalisation is not known.
        """
        latents = self.encode(images).latent_dist.sample(generator)
        shift, scale = self._normalisation(latents)
        return (latents - shift) * scale

    def from_latents(self, latents: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Images [B, C, H, W] of a denoiser's latents [B, c, h, w]; undoes ``to_latents``."""
        shift, scale = self._normalisation(latents)
        return self.decode(latents / scale + shift, size=size).sample

    def _normalisation(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and scale, each a number or [c, 1, 1]."""
        config = self.config
        if config.scaling_factor is None:
            raise ValueError(
                "the scale of this model's latents is not known; measure it with scripts/latent_stats.py MODEL "
                "--data IMAGES, or name its family: load_autoencoder(path, family='sd1')"
            )
        scale = latents.new_tensor(config.scaling_factor)
        if config.latents_mean is None or config.latents_std is None:
            return latents.new_tensor(config.shift_factor or 0.0), scale
        mean, std = (latents.new_tensor(x)[:, None, None] for x in (config.latents_mean, config.latents_std))
        return mean, scale / std

    def _check_images(self, images: Tensor) -> None:
        """Raises ValueError for images that ``encode`` cannot take."""
        channels = self.config.in_channels
        if images.ndim != 4 or images.shape[1] != channels or not images.is_floating_point():
            raise ValueError(
                f"{type(self).__name__} encodes floating-point images [B, {channels}, H, W] in [-1, 1]; got "
                f"{str(images.dtype).removeprefix('torch.')} {list(images.shape)}"
            )
        if min(images.shape[-2:]) < self.downsampling_factor:
            raise ValueError(
                f"images of {images.shape[-2]}x{images.shape[-1]} pixels are smaller than one latent, which "
                f"stands for {self.downsampling_factor}x{self.downsampling_factor}"
            )

    def _pad(self, images: Tensor) -> Tensor:
        """Repeats the right and bottom edge up to the next multiple of the downsampling factor."""
        height, width = images.shape[-2:]
        factor = self.downsampling_factor
        if height % factor or width % factor:
            images = F.pad(images, (0, -width % factor, 0, -height % factor), mode="replicate")
        return images

    def _check_latents(self, latents: Tensor, channels: int) -> None:
        """Raises ValueError for latents that ``decode`` cannot take."""
        if latents.ndim != 4 or latents.shape[1] != channels or not latents.is_floating_point():
            raise ValueError(
                f"{type(self).__name__} decodes floating-point latents [B, {channels}, h, w]; got "
                f"{str(latents.dtype).removeprefix('torch.')} {list(latents.shape)}"
            )

    def _like_self(self, stock: Stock) -> Stock:
        """A stock model on this one's device and in its dtype, in eval mode."""
        if self.dtype != stock.dtype:
            stock = stock.to(self.dtype)
        return stock.to(self.device).eval()
