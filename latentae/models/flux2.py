"""The VAE of FLUX.2: a KL-VAE whose latents are normalised in 2x2 patches by a batch normalisation."""

from __future__ import annotations

import json
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderKLFlux2
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from latentae.models.decoders import replace_decoder
from latentae.models.kl import KLVAE
from latentae.models.latent import LatentAutoencoder

PATCH = 2
"""Latent positions per side of the patch that a denoiser sees as one; diffusers' pipelines fix it."""


class Flux2VAE(KLVAE):
    """diffusers' AutoencoderKLFlux2 with the interface that all latentae models share.

    Encoder, decoder and posterior are a KLVAE's. A denoiser sees 2×2 patches of the latents as one position
    with four times as many channels, and each of these channels is normalised by the running mean and
    variance of a batch normalisation without weights, ``bn``. There is no ``scaling_factor``: the statistics
    are tensors of the model. ``bn`` is never run, so that training does not move them. ``latentae stats`` and
    the end of a training run measure them.

    Args:
        in_channels, out_channels, down_block_types, up_block_types, block_out_channels, layers_per_block,
        act_fn, latent_channels, norm_num_groups, sample_size, use_quant_conv, use_post_quant_conv,
        mid_block_add_attention: as for ``KLVAE``.
        decoder_block_out_channels: width of each level of the decoder, highest resolution first; None:
            ``block_out_channels``. The stock class holds a decoder of other widths too.
        decoder_layers_per_block, upscale: as for ``KLVAE``. Only this class can hold a model with them.
        batch_norm_eps: added to the variance before its root is taken.
        batch_norm_momentum: recorded for the stock class; not used.
        patch_size: (2, 2), which pipelines assume.

    Raises:
        ValueError: another patch size, an eps that is not positive, or a decoder that cannot be built.
    """

    _stock_class = AutoencoderKLFlux2

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",) * 4,
        up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",) * 4,
        block_out_channels: tuple[int, ...] = (128, 256, 512, 512),
        decoder_block_out_channels: tuple[int, ...] | None = None,
        layers_per_block: int = 2,
        act_fn: str = "silu",
        latent_channels: int = 32,
        norm_num_groups: int = 32,
        sample_size: int = 1024,
        use_quant_conv: bool = True,
        use_post_quant_conv: bool = True,
        mid_block_add_attention: bool = True,
        batch_norm_eps: float = 1e-4,
        batch_norm_momentum: float = 0.1,
        patch_size: tuple[int, int] = (PATCH, PATCH),
        decoder_layers_per_block: int | None = None,
        upscale: int = 1,
    ) -> None:
        if tuple(patch_size) != (PATCH, PATCH):
            raise ValueError(
                f"patch_size is {list(patch_size)}, but FLUX.2's pipelines take 2x2 patches only"
            )
        if not batch_norm_eps > 0:
            raise ValueError(f"batch_norm_eps is {batch_norm_eps}, but must be positive")
        widths = decoder_block_out_channels
        if widths is not None and len(widths) != len(block_out_channels):
            raise ValueError(
                f"decoder_block_out_channels is {list(widths)}, but must have one width for each of the "
                f"{len(block_out_channels)} levels of block_out_channels"
            )
        # Past AutoencoderKL's constructor, whose config has a scale: the parts are the stock class's.
        super(AutoencoderKL, self).__init__()
        stock = AutoencoderKLFlux2(
            in_channels=in_channels,
            out_channels=out_channels,
            down_block_types=down_block_types,
            up_block_types=up_block_types,
            block_out_channels=block_out_channels,
            decoder_block_out_channels=decoder_block_out_channels,
            layers_per_block=layers_per_block,
            act_fn=act_fn,
            latent_channels=latent_channels,
            norm_num_groups=norm_num_groups,
            sample_size=sample_size,
            use_quant_conv=use_quant_conv,
            use_post_quant_conv=use_post_quant_conv,
            mid_block_add_attention=mid_block_add_attention,
            batch_norm_eps=batch_norm_eps,
            batch_norm_momentum=batch_norm_momentum,
            patch_size=patch_size,
        )
        self.encoder, self.decoder = stock.encoder, stock.decoder
        self.quant_conv, self.post_quant_conv = stock.quant_conv, stock.post_quant_conv
        self.bn = stock.bn
        replace_decoder(self)
        if self.stock_objection is not None:
            self.register_to_config(_requires=f"latentae.load_autoencoder: {self.stock_objection}")
        self._reset_tiling(sample_size)

    @classmethod
    def from_single_file(
        cls, pretrained_model_link_or_path_or_dict: str | None = None, **kwargs: Any
    ) -> NoReturn:
        """Raises ValueError: diffusers cannot read FLUX.2's single file, and ``load_autoencoder`` can."""
        raise ValueError("Flux2VAE has no from_single_file: use latentae.load_autoencoder(path)")

    @property
    def has_known_scale(self) -> bool:
        """True: the statistics are tensors of the model."""
        return True

    @property
    def image_multiple(self) -> int:
        """Pixels per position that a denoiser sees, along each side."""
        return PATCH * self.downsampling_factor

    def to_latents(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Encodes images to what a FLUX.2 denoiser sees: [B, 4c, h/2, w/2], patched and normalised.

        Sides that are no multiple of 2 × the downsampling factor are padded by repeating the edge.

        Args:
            images: [B, C, H, W] in [−1, 1].
            generator: for a sample of the posterior; None: its mode, which FLUX.2's pipelines take.

        Raises:
            ValueError: as ``encode``.
        """
        posterior = self.encode(self.pad_for_denoiser(images)).latent_dist
        latents = posterior.mode() if generator is None else posterior.sample(generator)
        return self.arrange(self.normalise(latents))

    def from_latents(self, latents: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Decodes a denoiser's latents [B, 4c, h/2, w/2] to images [B, C, H, W]; undoes ``to_latents``.

        Raises:
            ValueError: another number of channels.
        """
        channels = PATCH**2 * self.latents_channels
        if latents.ndim != 4 or latents.shape[1] != channels:
            raise ValueError(
                f"from_latents takes normalised 2x2 patches [B, {channels}, h/2, w/2]; got "
                f"{list(latents.shape)} (decode takes plain latents)"
            )
        return self.decode(self.denormalise(F.pixel_shuffle(latents, PATCH)), size=size).sample

    def normalise(self, latents: Tensor) -> Tensor:
        """Returns latents [B, c, h, w] normalised by their places in the 2×2 patches, in the same shape.

        ``arrange`` makes of them what a denoiser sees. Sides may be odd: the values are independent.
        """
        height, width = latents.shape[-2:]
        patches = self.arrange(_even(latents))
        mean, std = self._statistics(patches)
        return F.pixel_shuffle((patches - mean) / std, PATCH)[..., :height, :width]

    def denormalise(self, latents: Tensor) -> Tensor:
        """Returns latents [B, c, h, w] as ``decode`` takes them; undoes ``normalise``."""
        height, width = latents.shape[-2:]
        patches = self.arrange(_even(latents))
        mean, std = self._statistics(patches)
        return F.pixel_shuffle(patches * std + mean, PATCH)[..., :height, :width]

    def take_scale(self, teacher: LatentAutoencoder) -> None:
        """Takes the statistics of another FLUX.2 VAE; those of other models become mean 0 and variance 1.

        Args:
            teacher: a model with a known scale and latents of the same size.
        """
        mean, variance = torch.zeros_like(self.bn.running_mean), torch.ones_like(self.bn.running_var)
        if isinstance(teacher, Flux2VAE):
            mean = teacher.bn.running_mean
            variance = teacher.bn.running_var + teacher.config.batch_norm_eps
        self.set_statistics(mean, variance - self.config.batch_norm_eps)

    def pad_for_denoiser(self, images: Tensor) -> Tensor:
        """Repeats the right and bottom edge of images up to whole patches of latents."""
        self._check_images(images)
        height, width = images.shape[-2:]
        factor = self.image_multiple
        if height % factor or width % factor:
            images = F.pad(images, (0, -width % factor, 0, -height % factor), mode="replicate")
        return images

    def arrange(self, latents: Tensor) -> Tensor:
        """Moves each 2×2 patch of latents into the channels: [B, c, h, w] to [B, 4c, h/2, w/2]."""
        return F.pixel_unshuffle(latents, PATCH)

    @torch.no_grad()
    def set_statistics(self, mean: Tensor, variance: Tensor) -> None:
        """Sets the running mean and variance [4c] of patched latents, as in ``arrange``."""
        self.bn.running_mean.copy_(mean)
        self.bn.running_var.copy_(variance)
        self.bn.num_batches_tracked.fill_(1)

    def to_json_string(self) -> str:
        """Returns the config as JSON, under the stock class's name where it can load the folder too."""
        config = json.loads(super().to_json_string())
        if self.stock_objection is None:
            config["_class_name"] = self._stock_class.__name__
        return json.dumps(config, indent=2, sort_keys=True) + "\n"

    def _statistics(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and standard deviation, [1, 4c, 1, 1] each, computed as in diffusers' pipelines."""
        mean = self.bn.running_mean.view(1, -1, 1, 1).to(latents)
        std = torch.sqrt(self.bn.running_var.view(1, -1, 1, 1) + self.config.batch_norm_eps)
        return mean, std.to(latents)

    def _normalisation(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (part[0] for part in self._statistics(latents))
        return mean, 1 / std


def _even(latents: Tensor) -> Tensor:
    """Adds a row and a column of zeros where that makes a side even."""
    height, width = latents.shape[-2:]
    return (
        F.pad(latents, (0, width % PATCH, 0, height % PATCH)) if height % PATCH or width % PATCH else latents
    )


# Pipelines record a component as (top module, class name) and load it from there.
Flux2VAE.__module__ = "latentae"
