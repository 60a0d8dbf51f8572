"""The format of TAESD (madebyollin): an encoder and a decoder in one file each, with nothing but layers."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from latentae.export.formats import Format
from latentae.models import Autoencoder, TinyAutoencoder
from latentae.models.checkpoints.families import FAMILIES
from latentae.models.checkpoints.taesd import (
    DECODER,
    ENCODER,
    Half,
    find_halves,
    taesd_arguments,
    taesd_objection,
    to_taesd_names,
)
from latentae.models.tiny_layers import layers_of

PAIR_SUFFIXES = (f"_{ENCODER}.safetensors", f"_{DECODER}.safetensors")
"""How the names of the two files end."""
# ComfyUI tells by the beginning of the files' names which scale and shift the family's denoiser has, and
# applies them around the model, so that the model's own latents are those that the denoiser sees.
_NAMES = {"sd1": "taesd", "sdxl": "taesdxl", "sd3": "taesd3", "flux": "taef1"}
_FLUX2_NAME, _FLUX2_CHANNELS = "taef2", 32
_OTHER_NAME = "tiny"
# What the layers do not show, and every reader assumes.
_ASSUMED = {"act_fn": "relu", "upsample_fn": "nearest", "upsampling_scaling_factor": 2}


class Taesd(Format):
    """A folder with two files, as TAESD is published and ComfyUI reads it.

    ComfyUI builds one architecture, 64 channels wide, from latents of any number of channels; TAESD for
    FLUX.2 has blocks of its own at the lowest resolution. Other programs, and ``load_autoencoder``, take the
    layers from the tensors.
    """

    is_folder = True
    holder = "TAESD's pair of files"

    def objections(self, model: Autoencoder, family: str | None) -> list[str]:
        if not isinstance(model, TinyAutoencoder):
            return [f"it is a {type(model).__name__}, not a TinyAutoencoder"]
        config = model.config
        found = []
        if (config.scaling_factor, config.shift_factor) != (1.0, 0.0):
            found.append(
                f"a denoiser sees (latents - {config.shift_factor:g}) * {config.scaling_factor:g}, and "
                "readers of the files take the latents as they are"
            )
        found += [
            f"{name} is {config[name]}, and readers of the files assume {value}"
            for name, value in _ASSUMED.items()
            if config[name] != value
        ]
        if model.upscale > 1:
            found.append(
                f"its decoder's images are {model.upscale} times as large as the encoder's, and readers of "
                "the files take both for equal"
            )
        elif (objection := taesd_objection(model.state_dict(), config)) is not None:
            found.append(objection)
        if family is not None:
            channels = FAMILIES[family].latent_channels
            if config.latent_channels != channels:
                found.append(f"latent_channels is {config.latent_channels}, and {family} has {channels}")
            if layers_of(config) != _comfyui_layers(config.latent_channels, "block"):
                found.append("its layers are not those of the one TAESD that ComfyUI builds for a family")
        return found

    def prepare(self, model: Autoencoder, family: str | None) -> list[str]:
        """Changes nothing."""
        name = _name(model, family)
        if name != _OTHER_NAME:
            return []
        names = ", ".join(f"{each} for {key}" for key, each in _NAMES.items())
        if layers_of(model.config) == _comfyui_layers(model.config.latent_channels, "block"):
            return [f"ComfyUI finds the files by their names, which begin with {names}: state the family"]
        return ["ComfyUI cannot read these files: it builds one TAESD, with other layers"]

    def write(self, model: Autoencoder, path: Path, dtype: torch.dtype, family: str | None) -> None:
        path.mkdir()
        name = _name(model, family)
        for side, tensors in to_taesd_names(model.state_dict()).items():
            rounded = {key: tensor.to(dtype).contiguous() for key, tensor in tensors.items()}
            save_file(rounded, path / f"{name}_{side}.safetensors", metadata={"format": "pt"})

    def reopen(self, path: Path, family: str | None) -> TinyAutoencoder:
        """Builds the model that the tensors show, without a config."""
        halves: dict[str, Half] = {}
        for suffix in PAIR_SUFFIXES:
            (file,) = path.glob(f"*{suffix}")
            halves |= find_halves(load_file(file))
        encoder, decoder = halves[ENCODER], halves[DECODER]
        model = TinyAutoencoder(**taesd_arguments(encoder, decoder))
        model.load_state_dict({**encoder.state(), **decoder.state()})
        return model.float().eval()

    def load_hint(self, model: Autoencoder, path: Path, family: str | None) -> str:
        name = _name(model, family)
        if name == _FLUX2_NAME:
            return f"put the files of {path} into ComfyUI/models/vae_approx, for previews of FLUX.2"
        if family is not None:
            where = f"choose {name} in the Load VAE node of a {family} workflow"
            return f"put the files of {path} into ComfyUI/models/vae_approx and {where}"
        return f'latentae.load_autoencoder("{path}")'


def _name(model: Autoencoder, family: str | None) -> str:
    """Returns what the names of the files begin with."""
    if family is not None:
        return _NAMES[family]
    is_flux2 = layers_of(model.config) == _comfyui_layers(_FLUX2_CHANNELS, "pooled_block")
    return _FLUX2_NAME if is_flux2 else _OTHER_NAME


def _comfyui_layers(latent_channels: int, lowest: str) -> tuple[list[str], list[str]]:
    """Describes the layers of the encoder and decoder that ComfyUI builds.

    Args:
        latent_channels: of the latents.
        lowest: the kind of block at the lowest resolution.
    """
    halving, doubling = "strided_conv_without_bias 64 64", ["upsample", "conv_without_bias 64 64"]
    block, inner = "block 64 64", f"{lowest} 64 64"
    down = ["conv 3 64", block, halving, *[block] * 3, halving, *[block] * 3, halving, *[inner] * 3]
    up = ["relu", *[inner] * 3, *doubling, *[block] * 3, *doubling, *[block] * 3, *doubling, block]
    return [*down, f"conv 64 {latent_channels}"], [f"conv {latent_channels} 64", *up, "conv 64 3"]
