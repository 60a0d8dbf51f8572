"""Finds the scale and shift of latents: in a checkpoint's metadata, or from the denoiser beside it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

SCALE_KEY = "latentae.scaling_factor"
SHIFT_KEY = "latentae.shift_factor"
FAMILY_KEY = "latentae.family"


@dataclass(frozen=True)
class Family:
    """The constants that a family's programs assume about its VAE.

    Attributes:
        latent_channels: channels of the latents.
        scale, shift: a denoiser of the family sees (latents − shift) · scale.
        sample_size: side, in pixels, of the images that its denoiser was trained on.
    """

    latent_channels: int
    scale: float
    shift: float = 0.0
    sample_size: int = 1024


FAMILIES: dict[str, Family] = {
    "sd1": Family(4, scale=0.18215, sample_size=512),  # arXiv 2112.10752; SD 2 has the same
    "sdxl": Family(4, scale=0.13025),  # arXiv 2307.01952
    "sd3": Family(16, scale=1.5305, shift=0.0609),  # arXiv 2403.03206
    "flux": Family(16, scale=0.3611, shift=0.1159),
}

_FACTOR = 8  # pixels per latent along a side, in all of the families
_CROSS_ATTENTION = re.compile(r"model\.diffusion_model\..*\.attn2\.to_k\.weight")
# By the width of the text embeddings that the UNet attends to: SD 1 has CLIP, SD 2 OpenCLIP, SDXL both.
_FAMILY_BY_WIDTH = {768: "sd1", 1024: "sd1", 2048: "sdxl"}
_PLAYGROUND_SCALE = 0.5  # Playground 2.5 is SDXL with its own mean and std


@dataclass(frozen=True)
class Normalisation:
    """Scale and shift that ``to_latents`` applies to raw latents.

    Attributes:
        scaling_factor: None where it is not known.
        shift_factor: one number for all channels.
        latents_mean, latents_std: one number per channel, in place of the shift.
        family: the name of the family that the numbers are from; None where they are from elsewhere.
    """

    scaling_factor: float | None = None
    shift_factor: float = 0.0
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    family: str | None = None

    def arguments(self) -> dict[str, Any]:
        """Returns the arguments for the constructor of a model."""
        return {name: value for name, value in asdict(self).items() if name != "family"}


def check_family(name: str, latent_channels: int) -> Family:
    """Returns the family of that name.

    Raises:
        ValueError: there is none, or its latents do not have ``latent_channels`` channels.
    """
    if name not in FAMILIES:
        raise ValueError(f"family is {name!r}, but must be one of {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    if family.latent_channels != latent_channels:
        raise ValueError(
            f"family is {name!r}, whose latents have {family.latent_channels} channels, but those of this "
            f"model have {latent_channels}"
        )
    return family


def find_normalisation(
    latent_channels: int,
    *,
    factor: int,
    metadata: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    family: str | None = None,
) -> Normalisation:
    """Takes scale and shift from the first of ``family``, the metadata and the tensors that has them.

    Args:
        latent_channels: of the autoencoder's latents.
        factor: pixels per latent along a side.
        metadata: of a safetensors file. Our exports write scale, shift and family there.
        tensors: of the whole checkpoint. LDM keeps a scale measured on data as ``scale_factor``. Otherwise
            the denoiser identifies the family, if channels and factor are the family's.
        family: the name of a family, where the caller knows it.

    Raises:
        ValueError: an unknown family, one with other latents, or an invalid scale or shift in the metadata.
    """
    if family is None and SCALE_KEY in metadata:
        shift = _number(SHIFT_KEY, metadata.get(SHIFT_KEY, "0"))
        return Normalisation(_positive(SCALE_KEY, _number(SCALE_KEY, metadata[SCALE_KEY])), shift)
    family = family or metadata.get(FAMILY_KEY)
    if family is not None:
        return _of_family(family, latent_channels)
    if "scale_factor" in tensors and tensors["scale_factor"].numel() == 1:
        return Normalisation(_positive("scale_factor", tensors["scale_factor"].item()))
    family = _surrounding_family(tensors)
    if family is None or factor != _FACTOR or FAMILIES[family].latent_channels != latent_channels:
        return Normalisation()
    if "edm_mean" in tensors and "edm_std" in tensors:
        mean, std = (tuple(tensors[name].flatten().tolist()) for name in ("edm_mean", "edm_std"))
        return Normalisation(_PLAYGROUND_SCALE, latents_mean=mean, latents_std=std, family=family)
    return _of_family(family, latent_channels)


def _of_family(name: str, latent_channels: int) -> Normalisation:
    family = check_family(name, latent_channels)
    return Normalisation(family.scale, family.shift, family=name)


def _surrounding_family(tensors: Mapping[str, Tensor]) -> str | None:
    """Identifies the family by the denoiser in a whole checkpoint; None: no denoiser, or an unknown one."""
    if any(".joint_blocks." in name for name in tensors):
        return "sd3"
    if any(".double_blocks." in name for name in tensors):
        return "flux"
    widths = {tensor.shape[-1] for name, tensor in tensors.items() if _CROSS_ATTENTION.fullmatch(name)}
    if widths:
        sdxl_refiner = widths == {1280} and any(name.startswith("conditioner.embedders.") for name in tensors)
        return "sdxl" if sdxl_refiner else _FAMILY_BY_WIDTH.get(max(widths))
    # Two text encoders and no UNet: SDXL's conditioner was saved with the autoencoder.
    return "sdxl" if any(name.startswith("conditioner.embedders.1.") for name in tensors) else None


def _number(key: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise ValueError(f"{key} in the metadata is {text!r}, but must be a number") from error
    if not math.isfinite(value):
        raise ValueError(f"{key} in the metadata is {text}, but must be finite")
    return value


def _positive(key: str, value: float) -> float:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{key} in the file is {value}, but must be positive and finite")
    return value
