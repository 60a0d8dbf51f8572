"""The interface all autoencoders share: outputs, input checks, padding, and scaling for a denoiser."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from latentae.models.card import ModelCardMixin
from latentae.models.checkpoints.configs import stock_meaning
from latentae.models.saving import SavingMixin
from latentae.models.tiling import PiecewiseMixin
from latentae.tracing import is_exporting, values_are_readable

# Beyond this an image is not in [-1, 1]. Bicubic resizing overshoots by up to a fifth of the contrast.
_LARGEST_VALUE = 1.5
# Beyond this it is not normalised at all. Normal noise stays below 7, the usual means and deviations below 4.
_LARGEST_NORMALISED_VALUE = 10.0
_CONVERSION = "; values from 0 to 255 become so by images.float() / 127.5 - 1"

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
    """What a VQ model's ``encode`` returns; the first field is what VQModel's has.

    Attributes:
        latents: [B, c, h, w] the latents before quantization, unscaled.
        latent_dist: the same as a posterior, with ``sample(generator)`` and ``mode()``.
    """

    latents: Tensor
    latent_dist: PointDistribution


@dataclass
class PosteriorOutput(BaseOutput):
    """What a KL-VAE's ``encode`` returns; the first field is what AutoencoderKL's has.

    Attributes:
        latent_dist: the posterior, with ``sample(generator)`` and ``mode()``.
        latents: [B, c, h, w] its mode, unscaled.
    """

    latent_dist: DiagonalGaussianDistribution
    latents: Tensor


@dataclass
class AutoencoderOutput(BaseOutput):
    """What ``forward`` returns: the reconstruction and what the losses need.

    Attributes:
        sample: [B, C, H, W] the reconstruction, as large as the images.
        commit_loss: the sum of ``losses``, under the name and in the place diffusers' VQModel gives it.
        latents: [B, c, h, w] what was decoded (VQ: before quantization), unscaled.
        losses: regularisers by name, scalars, already weighted.
        indices: [B, h, w] the codes, of VQ models.
        mean, log_variance: [B, c, h, w] the posterior's, of KL models.
    """

    sample: Tensor
    commit_loss: Tensor | None = None
    latents: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    indices: Tensor | None = None
    mean: Tensor | None = None
    log_variance: Tensor | None = None


class LatentAutoencoder(PiecewiseMixin, ModelCardMixin, SavingMixin):
    """Mixin of every model: needs ``config``, ``encode``, ``decode``, ``encoder`` and ``decoder``."""

    config: Any
    register_to_config: Callable[..., None]
    encode: Callable[..., Any]
    decode: Callable[..., Any]
    encoder: Any
    decoder: Any
    post_quant_conv: Any
    device: Any
    dtype: Any
    training: bool
    _warned_of_range = False
    _stock_class: ClassVar[type | None] = None  # diffusers' own, with the same weights and other defaults

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """diffusers' ``from_config``; what a stock class's config leaves out means that class's default."""
        stock = cls._stock_class
        if stock is not None and isinstance(config, dict) and config.get("_class_name") == stock.__name__:
            config = {**config, **stock_meaning(config, stock)}
        return super().from_config(config, return_unused_kwargs, **kwargs)  # type: ignore[misc]

    @property
    def downsampling_factor(self) -> int:
        """Pixels per latent position along each side."""
        return int(2 ** (len(self.config.block_out_channels) - 1))

    def latents_shape(self, images: Tensor) -> tuple[int, int, int]:
        """(c, h, w) of the latents that images [B, C, H, W] are encoded to."""
        height, width = (-(-side // self.downsampling_factor) for side in images.shape[-2:])
        return self.latents_channels, height, width

    @property
    def latents_channels(self) -> int:
        """Channels of the latents that ``encode`` gives: the length of a code on VQ models."""
        quantizer = getattr(self, "quantize", None)
        return int(self.config.latent_channels if quantizer is None else quantizer.code_dim)

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

    def change_config(self, **values: Any) -> None:
        """Changes the model's config, also for ``from_config(model.config)``.

        diffusers notes which parameters were left at their defaults, and would leave them there again.
        """
        unset = [name for name in self.config.get("_use_default_values", []) if name not in values]
        self.register_to_config(**values, _use_default_values=unset)

    def _check_normalisation(self) -> None:
        """Raises ValueError for a config whose scale, shift, mean or deviation cannot be one."""
        config = self.config
        if config.scaling_factor is not None:
            _check_numbers("scaling_factor", [config.scaling_factor], positive=True)
        if config.shift_factor is not None:
            _check_numbers("shift_factor", [config.shift_factor])
        for name in ("latents_mean", "latents_std"):
            values = config.get(name)
            if values is None:
                continue
            if not isinstance(values, Sequence):
                raise ValueError(f"{name} is {values!r}, but must be a list of numbers")
            if len(values) != self.latents_channels:
                raise ValueError(
                    f"{name} has {len(values)} values, but must have one for each of the "
                    f"{self.latents_channels} channels of the latents"
                )
            _check_numbers(name, values, positive=name == "latents_std")

    def _normalisation(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and scale, each a number or [c, 1, 1]."""
        config = self.config
        if config.scaling_factor is None:
            raise ValueError(
                "the scale of this model's latents is not known: measure it with scripts/latent_stats.py "
                "MODEL --data IMAGES, or name its family: load_autoencoder(path, family='sd1')"
            )
        scale = latents.new_tensor(config.scaling_factor)
        if config.latents_mean is None or config.latents_std is None:
            return latents.new_tensor(config.shift_factor or 0.0), scale
        mean, std = (latents.new_tensor(x)[:, None, None] for x in (config.latents_mean, config.latents_std))
        return mean, scale / std

    def _check_images(self, images: Tensor) -> None:
        """Raises ValueError for images that ``encode`` cannot take."""
        channels = self.config.in_channels
        if not _are_maps(images, channels):
            raise ValueError(
                f"{type(self).__name__} encodes floating-point images [B, {channels}, H, W] in [-1, 1]; got "
                f"{_describe(images)}{_CONVERSION if _is_of_bytes(images) else ''}"
            )
        if min(images.shape[-2:]) < self.downsampling_factor:
            raise ValueError(
                f"images of {images.shape[-2]}x{images.shape[-1]} pixels are smaller than one latent, which "
                f"stands for {self.downsampling_factor}x{self.downsampling_factor}"
            )
        self._check_dtype("images", images, self.encoder)
        # Training images come through a loader that scales them. A hook may change what the encoder gets.
        watched = self.training or any(map(_has_hooks, (self, self.encoder)))
        # On another device the host would have to wait for the values.
        is_read = images.device.type == "cpu" and values_are_readable(images)
        if is_read and not watched and images.numel() > 0:
            self._check_range(images)

    def _check_range(self, images: Tensor) -> None:
        """Raises ValueError for images that are not normalised; warns once of a range other than [-1, 1]."""
        low, high = (float(value) for value in torch.aminmax(images.detach()))
        message = f"{type(self).__name__} encodes images in [-1, 1]; these run from {low:g} to {high:g}"
        largest = max(-low, high)
        if not largest <= _LARGEST_NORMALISED_VALUE:  # so that NaN is caught, too
            raise ValueError(f"{message}{_CONVERSION if low >= 0 and math.isfinite(high) else ''}")
        if largest > _LARGEST_VALUE and not self._warned_of_range:
            self._warned_of_range = True
            warnings.warn(f"{message}. This is said once for each model", stacklevel=5)

    def _check_dtype(self, name: str, inputs: Tensor, first: nn.Module) -> None:
        """Raises ValueError where ``inputs`` would meet weights of another dtype in ``first``."""
        weight = next(first.parameters())
        if (
            inputs.dtype != weight.dtype
            and type(weight) is nn.Parameter  # else sharded or quantized, by someone who also converts
            and not torch.is_autocast_enabled(inputs.device.type)
            and inputs.dtype != self.dtype  # which knows of weights that are only stored in another dtype
        ):
            raise ValueError(
                f"the {name} are {_name(inputs.dtype)} and the {type(self).__name__} is "
                f"{_name(self.dtype)}: convert one of them with .to()"
            )

    def _pad(self, images: Tensor) -> Tensor:
        """Repeats the right and bottom edge up to the next multiple of the downsampling factor."""
        height, width = images.shape[-2:]
        factor = self.downsampling_factor
        # An exported model takes images of other sizes than the one it was exported with.
        if is_exporting() or height % factor or width % factor:
            images = F.pad(images, (0, -width % factor, 0, -height % factor), mode="replicate")
        return images

    def _check_latents(self, latents: Tensor, channels: int) -> None:
        """Raises ValueError for latents that ``decode`` cannot take."""
        if not _are_maps(latents, channels):
            raise ValueError(
                f"{type(self).__name__} decodes floating-point latents [B, {channels}, h, w]; got "
                f"{_describe(latents)}"
            )
        self._check_dtype("latents", latents, self.post_quant_conv or self.decoder)

    def _like_self(self, stock: Stock) -> Stock:
        """A stock model on this one's device and in its dtype, in eval mode."""
        if self.dtype != stock.dtype:
            stock = stock.to(self.dtype)
        return stock.to(self.device).eval()


def _check_numbers(name: str, values: Sequence[Any], *, positive: bool = False) -> None:
    """Raises ValueError for a value of a config that is no finite number, or not positive."""
    for value in values:
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or (positive and value <= 0):
            raise ValueError(
                f"{name} is {value!r}, but must be a {'positive, ' if positive else ''}finite number"
            )


def _are_maps(values: Any, channels: int) -> bool:
    """Whether these are floating-point numbers [B, channels, h, w]."""
    is_tensor = isinstance(values, Tensor)
    return is_tensor and values.ndim == 4 and values.shape[1] == channels and values.is_floating_point()


def _is_of_bytes(values: Any) -> bool:
    return isinstance(values, Tensor) and values.dtype == torch.uint8


def _describe(values: Any) -> str:
    if not isinstance(values, Tensor):
        return f"a {type(values).__name__}"
    return f"{_name(values.dtype)} {list(values.shape)}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _has_hooks(module: Any) -> bool:
    """Whether torch, accelerate or diffusers runs something of its own before or after the module."""
    own = module._forward_pre_hooks or module._forward_hooks
    return bool(own) or hasattr(module, "_hf_hook") or hasattr(module, "_diffusers_hook")
