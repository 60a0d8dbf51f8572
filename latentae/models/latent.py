"""The interface that all autoencoders share: outputs, input checks, padding, and scaling for a denoiser."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from latentae.devices import is_exporting, values_are_readable
from latentae.models.checkpoints.configs import stock_meaning
from latentae.models.half_safe import HalfSafeReport, make_half_safe
from latentae.models.lean import OptimizingMixin
from latentae.models.saving import SavingMixin
from latentae.models.tiling import TilingMixin

# Images in [-1, 1] stay below this; bicubic resizing overshoots by up to a fifth of the contrast.
_LARGEST_VALUE = 1.5
# Normalised images stay below this: normal noise below 7, the usual means and deviations below 4.
_LARGEST_NORMALISED_VALUE = 10.0
_CONVERSION = "; values from 0 to 255 become so by images.float() / 127.5 - 1"


class PointDistribution:
    """A posterior without variance, so that code written for a KL-VAE also runs with a VQ model."""

    def __init__(self, latents: Tensor) -> None:
        self.latents = latents

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Returns the latents; the generator is not used."""
        return self.latents

    def mode(self) -> Tensor:
        """Returns the latents."""
        return self.latents


@dataclass
class EncoderOutput(BaseOutput):
    """The output of ``encode`` of a model without a posterior. The first field is VQModel's.

    Attributes:
        latents: [B, c, h, w] the unscaled latents, of VQ models before quantization.
        latent_dist: the same latents as a posterior, with ``sample(generator)`` and ``mode()``.
    """

    latents: Tensor
    latent_dist: PointDistribution


@dataclass
class PosteriorOutput(BaseOutput):
    """The output of a KL-VAE's ``encode``. The first field is AutoencoderKL's.

    Attributes:
        latent_dist: the posterior, with ``sample(generator)`` and ``mode()``.
        latents: [B, c, h, w] its mode, unscaled.
    """

    latent_dist: DiagonalGaussianDistribution
    latents: Tensor


@dataclass
class AutoencoderOutput(BaseOutput):
    """The output of ``forward``: the reconstruction and the inputs of the losses.

    Attributes:
        sample: [B, C, H, W] the reconstruction, as large as the images, or ``upscale`` times as large.
        commit_loss: the sum of ``losses``, under the name and at the position that diffusers' VQModel uses.
        latents: [B, c, h, w] the unscaled latents that were decoded, of VQ models before quantization.
        losses: regularisers by name, scalars, already weighted.
        indices: [B, h, w] the codes of VQ models.
        mean, log_variance: [B, c, h, w] the posterior of KL models.
    """

    sample: Tensor
    commit_loss: Tensor | None = None
    latents: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    indices: Tensor | None = None
    mean: Tensor | None = None
    log_variance: Tensor | None = None


class LatentAutoencoder(OptimizingMixin, TilingMixin, SavingMixin):
    """Mixin of every model.

    A model provides ``config``, ``encoder``, ``decoder``, ``_encode_whole``, ``_decode_whole`` and
    ``decode``.
    """

    config: Any
    register_to_config: Callable[..., None]
    decode: Callable[..., Any]
    encoder: Any
    decoder: Any
    post_quant_conv: Any
    device: Any
    dtype: Any
    training: bool
    fixed_size: int | None = None
    """Side in pixels of the square images that the model takes; None: it takes any size."""
    _warned_of_range = False
    _stock_class: ClassVar[type]  # diffusers' own class with the same weights; its defaults may differ

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """diffusers' ``from_config``; keys missing in a stock class's config get that class's defaults."""
        stock = cls._stock_class
        if isinstance(config, dict) and config.get("_class_name") == stock.__name__:
            config = {**config, **stock_meaning(config, stock)}
        return super().from_config(config, return_unused_kwargs, **kwargs)  # type: ignore[misc]

    @property
    def stock_objection(self) -> str | None:
        """Why the stock class cannot hold the weights, as a clause; None if it can."""
        return None

    @property
    def fits_stock_class(self) -> bool:
        """Whether the stock class can hold the weights, or a plain codebook that replaces the quantizer."""
        return self.stock_objection is None

    @property
    def downsampling_factor(self) -> int:
        """Pixels per latent position along each side."""
        return int(2 ** (len(self.config.block_out_channels) - 1))

    @property
    def upscale(self) -> int:
        """The ratio of a reconstruction's side to the image's side."""
        return int(self.config.get("upscale", 1))

    @property
    def latents_channels(self) -> int:
        """Channels of the latents that ``encode`` returns."""
        return int(self.config.latent_channels)

    def latents_shape(self, images: Tensor) -> tuple[int, int, int]:
        """Returns (c, h, w) of the latents of images [B, C, H, W]."""
        height, width = (-(-side // self.downsampling_factor) for side in images.shape[-2:])
        return self.latents_channels, height, width

    @property
    def has_known_scale(self) -> bool:
        """Whether ``to_latents`` can normalise the latents."""
        return self.config.scaling_factor is not None

    @property
    def image_multiple(self) -> int:
        """Pixels per position that a denoiser sees, along each side."""
        return self.downsampling_factor

    def pad_for_denoiser(self, images: Tensor) -> Tensor:
        """Pads images beyond what ``encode`` does, where a denoiser needs it; here they stay."""
        return images

    def arrange(self, latents: Tensor) -> Tensor:
        """Arranges unscaled latents [B, c, h, w] as a denoiser sees them; here they stay."""
        return latents

    @property
    def last_layer(self) -> nn.Conv2d:
        """The decoder's last convolution, where the adaptive weight is measured."""
        return self.decoder.conv_out

    @property
    def output_gain(self) -> float:
        """The derivative of the reconstruction with respect to the last layer's output."""
        return 1.0

    @property
    def last_encoder_layer(self) -> nn.Conv2d:
        """The encoder's last convolution, where the adaptive weight of losses of the latents is measured."""
        return self.encoder.conv_out

    @apply_forward_hook
    def encode(self, x: Tensor, return_dict: bool = True) -> EncoderOutput | tuple[Tensor]:
        """Encodes images [B, C, H, W] in [−1, 1] to continuous latents [B, c, h, w].

        Sides that are no multiple of the downsampling factor are padded by repeating the edge.

        Raises:
            ValueError: wrong shape, channel count, dtype or range, or images smaller than one latent.
        """
        self._check_images(x)
        latents = self._encode_in_pieces(self._pad(x))
        if not return_dict:
            return (latents,)
        return EncoderOutput(latents=latents, latent_dist=PointDistribution(latents))

    def to_latents(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Encodes images to latents [B, c, h, w] as a denoiser expects them: (sample − shift) · scale.

        If the config has ``latents_mean`` and ``latents_std``: (sample − mean) · scale / std, per channel.

        Args:
            images: [B, C, H, W] in [−1, 1].
            generator: for the posterior's sample.

        Raises:
            ValueError: the scale of the model's latents is not known.
        """
        return self.normalise(self.encode(images).latent_dist.sample(generator))

    def from_latents(self, latents: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Decodes a denoiser's latents [B, c, h, w] to images [B, C, H, W]; undoes ``to_latents``."""
        return self.decode(self.denormalise(latents), size=size).sample

    def normalise(self, latents: Tensor) -> Tensor:
        """Returns unscaled latents [B, c, h, w] in the units that a denoiser sees, in the same shape.

        Raises:
            ValueError: the scale of the model's latents is not known.
        """
        shift, scale = self._normalisation(latents)
        return (latents - shift) * scale

    def denormalise(self, latents: Tensor) -> Tensor:
        """Returns latents [B, c, h, w] as ``decode`` takes them; undoes ``normalise``."""
        shift, scale = self._normalisation(latents)
        return latents / scale + shift

    def take_scale(self, teacher: LatentAutoencoder) -> None:
        """Normalises from now on as a teacher does, so that its denoiser and pipeline fit.

        Latents that are equal after ``normalise`` are then equal without it, too. A teacher without a scale
        in its config, a FLUX.2 VAE, has statistics that this class cannot hold. The scale then becomes 1: the
        latents are normalised as they are.

        Args:
            teacher: a model with a known scale and latents of the same size.
        """
        config = teacher.config
        self.change_config(
            scaling_factor=config.get("scaling_factor", 1.0),
            shift_factor=config.get("shift_factor") or 0.0,
            latents_mean=config.get("latents_mean"),
            latents_std=config.get("latents_std"),
        )

    def make_half_safe(self, images: Tensor, margin: float = 8.0) -> HalfSafeReport:
        """Rescales the weights in place so that the model runs in float16; the images stay the same.

        See ``latentae.models.half_safe.make_half_safe``.

        Args:
            images: [B, C, H, W] in [−1, 1], typical of what the model will see.
            margin: how many times the activations on these images stay below float16's largest number.

        Raises:
            ValueError: a model without group normalisations, images that it cannot encode, a margin below 1.
        """
        return make_half_safe(self, images, margin)

    def change_config(self, **values: Any) -> None:
        """Changes the model's config so that ``from_config(model.config)`` sees the change.

        diffusers records which parameters were left at their defaults, and would reset those.
        """
        unset = [name for name in self.config.get("_use_default_values", []) if name not in values]
        self.register_to_config(**values, _use_default_values=unset)

    def _finish_config(self) -> None:
        """Checks the normalisation, and records in the config if only latentae can open the model.

        Raises:
            ValueError: a scale, shift, mean or deviation that is not a valid number.
        """
        config = self.config
        if self.stock_objection is not None:
            self.register_to_config(_requires=f"latentae.load_autoencoder: {self.stock_objection}")
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
        """Returns shift and scale, each a scalar or [c, 1, 1]."""
        config = self.config
        if config.scaling_factor is None:
            raise ValueError(
                "the scale of this model's latents is not known: measure it with scripts/latent_stats.py "
                "MODEL --data IMAGES, or name its family: load_autoencoder(path, family='sd1')"
            )
        # Filled on the device: to copy a number from the host would wait for it.
        scale = latents.new_full((), config.scaling_factor)
        if config.latents_mean is None or config.latents_std is None:
            return latents.new_full((), config.shift_factor or 0.0), scale
        mean, std = (latents.new_tensor(x)[:, None, None] for x in (config.latents_mean, config.latents_std))
        return mean, scale / std

    def check_image_size(self, image_size: int) -> None:
        """Raises ValueError if the model has a fixed size, and this side in pixels is another."""
        if self.fixed_size not in (None, image_size):
            raise ValueError(
                f"image_size is {image_size}, but {type(self).__name__} takes images of {self.fixed_size}x"
                f"{self.fixed_size} pixels alone: give an image_size of {self.fixed_size}"
            )

    def _check_images(self, images: Tensor) -> None:
        """Raises ValueError for images that ``encode`` cannot take."""
        channels = self.config.in_channels
        if not _are_maps(images, channels):
            is_bytes = isinstance(images, Tensor) and images.dtype == torch.uint8
            raise ValueError(
                f"{type(self).__name__} encodes floating-point images [B, {channels}, H, W] in [-1, 1]; got "
                f"{_describe(images)}{_CONVERSION if is_bytes else ''}"
            )
        if min(images.shape[-2:]) < self.downsampling_factor:
            raise ValueError(
                f"images of {images.shape[-2]}x{images.shape[-1]} pixels are smaller than one latent, which "
                f"stands for {self.downsampling_factor}x{self.downsampling_factor}"
            )
        self._check_dtype("images", images, self.encoder)
        # Skip training, whose loader scales the images; hooks, which may change what the encoder gets; and
        # devices where reading the values would make the host wait.
        watched = self.training or any(map(_has_hooks, (self, self.encoder)))
        is_read = images.device.type == "cpu" and values_are_readable(images)
        if is_read and not watched and images.numel() > 0:
            self._check_range(images)

    def _check_range(self, images: Tensor) -> None:
        """Raises ValueError for images that are not normalised; warns once about a range beyond [-1, 1]."""
        low, high = (float(value) for value in torch.aminmax(images.detach()))
        message = f"{type(self).__name__} encodes images in [-1, 1]; these run from {low:g} to {high:g}"
        largest = max(-low, high)
        if not largest <= _LARGEST_NORMALISED_VALUE:  # not `>`, which would let NaN pass
            raise ValueError(f"{message}{_CONVERSION if low >= 0 and math.isfinite(high) else ''}")
        if largest > _LARGEST_VALUE and not self._warned_of_range:
            self._warned_of_range = True
            warnings.warn(f"{message}. This warning comes once per model", stacklevel=5)

    def _check_dtype(self, name: str, inputs: Tensor, first: nn.Module) -> None:
        """Raises ValueError if ``inputs`` and the weights of ``first`` have different dtypes."""
        weight = next(first.parameters())
        if (
            inputs.dtype != weight.dtype
            and type(weight) is nn.Parameter  # else sharded or quantised by a library that also converts
            and not torch.is_autocast_enabled(inputs.device.type)
            and inputs.dtype != self.dtype  # which differs from weights that are only stored in another dtype
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

    def _check_fits_stock_class(self) -> None:
        """Raises ValueError if the stock class cannot hold the weights."""
        if self.stock_objection is not None:
            raise ValueError(
                f"{self.stock_objection}; save_pretrained keeps the model, and latentae.load_autoencoder "
                "opens it"
            )

    def _build_stock(self, state: Mapping[str, Tensor]) -> Any:
        """Builds the stock class from this config, with ``state``; same device and dtype, in eval mode."""
        names = inspect.signature(self._stock_class).parameters
        stock: Any = self._stock_class(**{name: self.config[name] for name in names if name in self.config})
        stock.load_state_dict(state)
        if self.dtype != stock.dtype:
            stock = stock.to(self.dtype)
        return stock.to(self.device).eval()


def _check_numbers(name: str, values: Sequence[Any], *, positive: bool = False) -> None:
    """Raises ValueError for a config value that is not a finite number, or not positive."""
    for value in values:
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or (positive and value <= 0):
            raise ValueError(
                f"{name} is {value!r}, but must be a {'positive, ' if positive else ''}finite number"
            )


def _are_maps(values: Any, channels: int) -> bool:
    """Returns whether the values are a floating-point tensor [B, channels, h, w]."""
    is_tensor = isinstance(values, Tensor)
    return is_tensor and values.ndim == 4 and values.shape[1] == channels and values.is_floating_point()


def _describe(values: Any) -> str:
    if not isinstance(values, Tensor):
        return f"a {type(values).__name__}"
    return f"{_name(values.dtype)} {list(values.shape)}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _has_hooks(module: Any) -> bool:
    """Returns whether torch, accelerate or diffusers runs code before or after the module."""
    own = module._forward_pre_hooks or module._forward_hooks
    return bool(own) or hasattr(module, "_hf_hook") or hasattr(module, "_diffusers_hook")
