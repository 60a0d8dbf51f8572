"""diffusers' other autoencoders, of images and of video, behind the common interface for evaluation."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from latentae.models.checkpoints.configs import embed_config
from latentae.models.latent import (
    AutoencoderOutput,
    EncoderOutput,
    LatentAutoencoder,
    PointDistribution,
    PosteriorOutput,
)

_TILE = 512  # pixels; most of these classes do not record the size of their training images


def _key(name: str) -> Callable[[Any], int]:
    """An entry of the config."""
    return lambda config: int(config[name])


def _levels(name: str) -> Callable[[Any], int]:
    """The image is halved after all levels but the last."""
    return lambda config: int(2 ** (len(config[name]) - 1))


def _halvings(name: str) -> Callable[[Any], int]:
    """The image is halved once per entry."""
    return lambda config: int(2 ** len(config[name]))


def _ltx(config: Any) -> int:
    """LTX folds patches into channels, then halves the image unless a level halves the frames alone."""
    levels = zip(config["spatio_temporal_scaling"], config["downsample_type"], strict=False)
    return int(config["patch_size"] * 2 ** sum(scales and kind != "temporal" for scales, kind in levels))


def _patched(config: Any) -> int:
    """The channels are those of patches of pixels, if there are patches."""
    return int(config["in_channels"] // (config["patch_size"] or 1) ** 2)


_RATIO = _key("spatial_compression_ratio")
_LATENT_CHANNELS = _key("latent_channels")
_IN_CHANNELS = _key("in_channels")
_Z_DIM = _key("z_dim")


@dataclass(frozen=True)
class Facts:
    """Facts about a class of diffusers that the common interface needs.

    Attributes:
        factor: pixels per latent position along each side, from the config.
        frames: whether images and latents have an axis of frames, [B, C, 1, H, W].
        latents, images: channels of the latents and of the images, from the config.
        scale, offset: of the pixels that the class takes: images in [−1, 1] times scale plus offset.
        has_posterior: False where the class makes up the variance of the posterior that it returns.
        is_normalised: whether ``encode`` of the class gives latents as a denoiser expects them.
        takes_batches: False where the class fails with more than one image, or draws noise to decode.
        least: latent positions per side of the smallest image.
        decoding: further arguments of ``decode``.
    """

    factor: Callable[[Any], int]
    frames: bool = False
    latents: Callable[[Any], int] = _LATENT_CHANNELS
    images: Callable[[Any], int] = _IN_CHANNELS
    scale: float = 1.0
    offset: float = 0.0
    has_posterior: bool = True
    is_normalised: bool = False
    takes_batches: bool = True
    least: int = 1
    decoding: dict[str, Any] = field(default_factory=dict)


# Source of each line: the class's encode, decode and constructor, and the pipelines that use it.
CLASSES: dict[str, Facts] = {
    "AsymmetricAutoencoderKL": Facts(_levels("down_block_out_channels")),
    "AutoencoderDC": Facts(_levels("encoder_block_out_channels")),
    "AutoencoderKLCogVideoX": Facts(_levels("block_out_channels"), frames=True),
    "AutoencoderKLCosmos": Facts(_RATIO, frames=True),
    "AutoencoderKLHunyuanImage": Facts(_RATIO),
    "AutoencoderKLHunyuanImageRefiner": Facts(_RATIO, frames=True),
    "AutoencoderKLHunyuanVideo": Facts(_RATIO, frames=True),
    # Its mask for attention does not fit more than one image.
    "AutoencoderKLHunyuanVideo15": Facts(_RATIO, frames=True, takes_batches=False),
    "AutoencoderKLKVAE": Facts(_levels("ch_mult"), latents=_key("z_channels")),
    "AutoencoderKLKVAEVideo": Facts(
        _levels("ch_mult"), frames=True, latents=_key("z_channels"), has_posterior=False
    ),
    "AutoencoderKLLTX2Video": Facts(_ltx, frames=True, least=2),  # it pads by reflection
    "AutoencoderKLLTXVideo": Facts(_ltx, frames=True),
    "AutoencoderKLMagvit": Facts(_levels("block_out_channels"), frames=True),
    "AutoencoderKLMochi": Facts(_halvings("spatial_expansions"), frames=True, images=_key("out_channels")),
    "AutoencoderKLQwenImage": Facts(
        _halvings("temperal_downsample"), frames=True, latents=_Z_DIM, images=_key("input_channels")
    ),
    "AutoencoderKLQwenImage21": Facts(
        _key("scale_factor_spatial"), frames=True, latents=_Z_DIM, images=_patched
    ),
    "AutoencoderKLTemporalDecoder": Facts(_levels("block_out_channels"), decoding={"num_frames": 1}),
    "AutoencoderKLWan": Facts(_key("scale_factor_spatial"), frames=True, latents=_Z_DIM, images=_patched),
    "AutoencoderRAE": Facts(  # pixels in [0, 1]
        _key("patch_size"),
        latents=_key("encoder_hidden_size"),
        images=_key("num_channels"),
        scale=0.5,
        offset=0.5,
        is_normalised=True,
    ),
    "ConsistencyDecoderVAE": Facts(
        _levels("encoder_block_out_channels"), images=_key("encoder_in_channels"), takes_batches=False
    ),
    "Kandinsky6SRVAE": Facts(  # pixels / 128 − 1, as its pipeline converts them
        _levels("encoder_block_out_channels"), frames=True, scale=127.5 / 128, offset=127.5 / 128 - 1
    ),
}
"""diffusers' classes that ``ForeignAutoencoder`` opens."""

_AUDIO = "is for audio, not for images"
REFUSED: dict[str, str] = {
    "AceStepAudioTokenizer": _AUDIO,
    "AutoencoderKLAllegro": "encodes clips of 24 frames in tiles, and cannot encode a single image",
    "AutoencoderKLKVAEAudio": _AUDIO,
    "AutoencoderKLLTX2Audio": _AUDIO,
    "AutoencoderKLMiniMaxH3": "decodes clips, and cannot decode a single image",
    "AutoencoderKLMiniMaxH3Audio": _AUDIO,
    "AutoencoderOobleck": _AUDIO,
    "AutoencoderSAME": _AUDIO,
    "AutoencoderVidTok": "encodes clips, and cannot encode a single image",
    "Cosmos3AVAEAudioTokenizer": _AUDIO,
    "LTX2VideoDiffusionDecoderModel": "is a decoder without an encoder",
    "LongCatAudioDiTVae": _AUDIO,
    "MMAudioVAE": _AUDIO,
    "MMAudioVocoder": _AUDIO,
    "MiniMaxMusic3Vocoder": _AUDIO,
    "RFD4ProteinaAutoencoder": "encodes proteins",
}
"""diffusers' other autoencoders, and why they cannot be opened."""


def stock_class(name: str) -> Any:
    """Returns diffusers' class; raises ValueError where the installed release has none of that name."""
    found = getattr(diffusers, name, None)
    if found is None:
        raise ValueError(f"diffusers {diffusers.__version__} has no {name}: install a newer release")
    return found


class ForeignAutoencoder(LatentAutoencoder, nn.Module):
    """An autoencoder of another architecture, of one of the ``CLASSES``, for evaluation only.

    Images [B, C, H, W] in [−1, 1] go in and come out, whatever the class takes; a class of video gets each
    image as a clip of one frame. Latents are those of the class, without the axis of frames. ``to_latents``
    normalises them as the pipelines of diffusers do: by ``latents_mean`` and ``latents_std``, from the config
    or from the model's own tensors, and by ``scaling_factor`` and ``shift_factor``.

    A decoder that draws noise draws the same for every image, so that results repeat.

    Args:
        vae: the model of diffusers, which is put into eval mode.

    Attributes:
        vae: that model.
        config: its config, with the names of the common interface added.
    """

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae.eval()
        self.facts = CLASSES[type(vae).__name__]
        self.config = FrozenDict({**vae.config, **_common_names(vae, self.facts)})
        draws = any(_as_tuple(self.config.get("decoder_inject_noise")))
        self._one_by_one = draws or not self.facts.takes_batches
        self._has_opaque_images = False
        self.fixed_size = getattr(vae, "decoder_image_size", None)
        size = self.config["sample_size"]
        self._reset_tiling(size if size and not self.fixed_size else _TILE)
        super().train(False)

    @classmethod
    def around(cls, vae: Any) -> ForeignAutoencoder:
        """Returns a model that goes by the name of the class that it holds, in messages and reports.

        Raises:
            ValueError: a class that is not one of the ``CLASSES``.
        """
        name = type(vae).__name__
        if name not in CLASSES:
            raise ValueError(f"vae is a {name}, but must be one of {', '.join(CLASSES)}")
        return _named(name)(vae)

    @property
    def downsampling_factor(self) -> int:
        """Pixels per latent position along each side."""
        return self.facts.factor(self.config)

    @property
    def upscale(self) -> int:
        """1: images come back at their own size."""
        return 1

    @property
    def encoder(self) -> Any:
        """The encoder of the class."""
        return self.vae.encoder

    @property
    def decoder(self) -> Any:
        """The decoder of the class; the whole model where it has none under this name."""
        return getattr(self.vae, "decoder", self.vae)

    @property
    def post_quant_conv(self) -> Any:
        """The convolution before the decoder, or None."""
        return getattr(self.vae, "post_quant_conv", None)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        device: torch.device = self.vae.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the weights."""
        dtype: torch.dtype = self.vae.dtype
        return dtype

    @apply_forward_hook
    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """Encodes images [B, C, H, W] in [−1, 1] to a posterior or, where the class has none, to latents.

        Sides that are no multiple of the downsampling factor are padded by repeating the edge.

        Raises:
            ValueError: as for every model; or images of another size than the only one that the class takes.
        """
        self._check_images(x)
        encoded = self._encode_in_pieces(self._pad(x))
        if encoded.shape[1] == 2 * self.latents_channels:
            posterior = DiagonalGaussianDistribution(encoded)
            if not return_dict:
                return (posterior,)
            return PosteriorOutput(latent_dist=posterior, latents=posterior.mode())
        if not return_dict:
            return (encoded,)
        return EncoderOutput(latents=encoded, latent_dist=PointDistribution(encoded))

    @apply_forward_hook
    def decode(
        self,
        z: Tensor,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
        size: tuple[int, int] | None = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """Decodes unscaled latents [B, c, h, w] to images [B, C, H, W], cropped to ``size`` (H, W).

        The generator is not used.
        """
        self._check_latents(z, self.latents_channels)
        images = self._decode_in_pieces(z, size)
        return DecoderOutput(sample=images) if return_dict else (images,)

    def forward(self, sample: Tensor, return_dict: bool = True) -> AutoencoderOutput | tuple[Tensor]:
        """Reconstructs images [B, C, H, W] in [−1, 1] from the mode of the posterior."""
        encoded = self.encode(sample)
        images = self.decode(encoded.latents, size=sample.shape[-2:]).sample
        if not return_dict:
            return (images,)
        moments = {}
        if isinstance(encoded, PosteriorOutput):
            posterior = encoded.latent_dist
            moments = {"mean": posterior.mean, "log_variance": posterior.logvar}
        return AutoencoderOutput(sample=images, latents=encoded.latents, **moments)

    def train(self, mode: bool = True) -> ForeignAutoencoder:
        """Raises ValueError if ``mode`` is true."""
        if mode:
            raise ValueError(
                f"an {type(self).__name__} is for evaluation only; train a KLVAE, VQVAE or VQGAN"
            )
        super().train(False)
        return self

    def to_diffusers(self) -> Any:
        """Returns the model of diffusers itself."""
        return self.vae

    def ignore_alpha(self) -> None:
        """From now on takes RGB images: adds an opaque alpha to them, and drops the one that is decoded.

        So a class for RGBA images can be compared with others; the pipeline of Qwen-Image 2.1 adds the same
        alpha to RGB images.

        Raises:
            ValueError: the images of the class do not have four channels.
        """
        if self.config["in_channels"] != 4:
            raise ValueError(f"{type(self).__name__} takes images of {self.config['in_channels']} channels")
        self.config = FrozenDict({**self.config, "in_channels": 3, "out_channels": 3})
        self._has_opaque_images = True

    def state_dict(self, *args: Any, **arguments: Any) -> Any:
        """The tensors of the class, under its own names."""
        return self.vae.state_dict(*args, **arguments)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **arguments: Any) -> Any:
        """Loads tensors that ``state_dict`` gave."""
        return self.vae.load_state_dict(state_dict, *args, **arguments)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        *args: Any,
        **arguments: Any,
    ) -> None:
        """Writes the folder of diffusers' class."""
        self.vae.save_pretrained(save_directory, is_main_process, *args, **arguments)
        if is_main_process:
            embed_config(Path(save_directory))

    def _normalisation(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        if not self.has_known_scale:
            raise ValueError(
                f"diffusers records no scale of the latents of an {type(self).__name__}: encode and decode "
                "work without one"
            )
        return super()._normalisation(latents)

    def _check_images(self, images: Tensor) -> None:
        super()._check_images(images)
        side, least = self.fixed_size, self.facts.least
        if min(images.shape[-2:]) <= (least - 1) * self.downsampling_factor:
            raise ValueError(
                f"{type(self).__name__} takes no images that are smaller than {least}x{least} latents, of "
                f"{self.downsampling_factor} pixels a side each, and these have {images.shape[-2]}x"
                f"{images.shape[-1]} pixels"
            )
        if side is not None and tuple(images.shape[-2:]) != (side, side):
            raise ValueError(
                f"{type(self).__name__} takes images of {side}x{side} pixels alone, and these have "
                f"{images.shape[-2]}x{images.shape[-1]}: resize or crop them first"
            )

    def _check_latents(self, latents: Tensor, channels: int) -> None:
        super()._check_latents(latents, channels)
        side = (self.fixed_size or 0) // self.downsampling_factor
        if side and tuple(latents.shape[-2:]) != (side, side):
            raise ValueError(
                f"{type(self).__name__} decodes latents of {side}x{side} positions alone, and these have "
                f"{latents.shape[-2]}x{latents.shape[-1]}"
            )

    def _encode_whole(self, images: Tensor) -> Tensor:
        """Returns mean and log-variance [B, 2c, h, w], or latents [B, c, h, w]."""
        facts = self.facts
        if self._has_opaque_images:
            images = torch.cat([images, torch.ones_like(images[:, :1])], dim=1)
        pixels = images * facts.scale + facts.offset if facts.scale != 1 else images
        if facts.frames:
            pixels = pixels[:, :, None]
        encoded = self._batches(pixels, lambda part: _tensor_of(self.vae.encode(part)))
        if facts.frames:
            encoded = self._one_frame(encoded)
        if not facts.has_posterior:
            encoded = encoded[:, : self.latents_channels]
        factor = self.downsampling_factor
        expected = tuple(side // factor for side in images.shape[-2:])
        if tuple(encoded.shape[-2:]) != expected:
            raise ValueError(
                f"this {type(self).__name__} encodes {images.shape[-2]}x{images.shape[-1]} pixels to "
                f"{encoded.shape[-2]}x{encoded.shape[-1]} latents, where its config says that it divides "
                f"each side by {factor}: latentae does not know this edition of it"
            )
        return encoded

    def _decode_whole(self, latents: Tensor) -> Tensor:
        facts = self.facts
        images = self._batches(latents[:, :, None] if facts.frames else latents, self._decode_part)
        if facts.frames:
            images = self._one_frame(images)
        if self._has_opaque_images:
            images = images[:, :3]
        return (images - facts.offset) / facts.scale if facts.scale != 1 else images

    def _decode_part(self, latents: Tensor) -> Tensor:
        arguments = dict(self.facts.decoding)
        if self.config.get("timestep_conditioning"):  # LTX's pipelines decode at time 0 by default
            arguments["temb"] = latents.new_zeros(len(latents))
        with _same_noise(latents.device) if self._one_by_one else _no_change():
            images: Tensor = self.vae.decode(latents, **arguments).sample
        return images

    def _batches(self, inputs: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        if not self._one_by_one:
            return function(inputs)
        return torch.cat([function(one) for one in inputs.split(1)])

    def _one_frame(self, clips: Tensor) -> Tensor:
        """Returns [B, C, H, W] of [B, C, 1, H, W]."""
        if clips.shape[2] != 1:
            raise ValueError(
                f"this {type(self).__name__} makes {clips.shape[2]} frames of one: it is for clips only"
            )
        return clips[:, :, 0]


@functools.cache
def _named(name: str) -> type[ForeignAutoencoder]:
    return type(name, (ForeignAutoencoder,), {"__module__": __name__, "__doc__": ForeignAutoencoder.__doc__})


def _common_names(vae: Any, facts: Facts) -> dict[str, Any]:
    """Returns the entries of a config that all models of latentae have."""
    config = vae.config
    channels, images = facts.latents(config), facts.images(config)
    mean, std = (_statistics(vae, name, channels) for name in ("latents_mean", "latents_std"))
    scale = config.get("scaling_factor")
    if facts.is_normalised:
        mean, std, scale = None, None, 1.0
    elif scale is None and mean is not None and std is not None:
        scale = 1.0
    return {
        "in_channels": images,
        "out_channels": images,
        "latent_channels": channels,
        "scaling_factor": scale,
        "shift_factor": config.get("shift_factor") or 0.0,
        "latents_mean": mean,
        "latents_std": std,
        "sample_size": getattr(vae, "decoder_image_size", None) or config.get("sample_size"),
    }


def _statistics(vae: Any, name: str, channels: int) -> list[float] | None:
    """Returns a number per channel from the config or a buffer; Cosmos has one for each frame, too."""
    values = vae.config.get(name)
    if values is None:  # LTX keeps them with its weights
        values = dict(vae.named_buffers(recurse=False)).get(name)
    if values is None:
        return None
    table = torch.as_tensor(values, dtype=torch.float64).reshape(channels, -1)
    return [float(value) for value in table[:, 0]]


def _tensor_of(output: Any) -> Tensor:
    """Returns the moments of a posterior, or the latents, of what ``encode`` of a class returned."""
    posterior = getattr(output, "latent_dist", None)
    tensor: Tensor = output.latent if posterior is None else posterior.parameters
    return tensor


def _as_tuple(values: Any) -> tuple[Any, ...]:
    return tuple(values) if isinstance(values, list | tuple) else (values,)


@contextmanager
def _same_noise(device: torch.device) -> Iterator[None]:
    """Draws from a fixed seed, and leaves torch's generators as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield


@contextmanager
def _no_change() -> Iterator[None]:
    yield
