"""Opens autoencoders of any program: a folder, a file, or a repository on the hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from latentae.models.checkpoints.configs import CONFIG, find_model_folder, look_for_config, read_config
from latentae.models.checkpoints.families import FAMILIES
from latentae.models.checkpoints.open import (
    Autoencoder,
    Opened,
    fetch_config,
    find_configs,
    load_pretrained,
    load_single_file,
)
from latentae.models.checkpoints.reading import read_metadata
from latentae.models.checkpoints.taesd import find_pair

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(?<!\.safetensors)(?<!\.ckpt)(?<!\.pt)(?<!\.pth)(?<!\.bin)")
# The files of a model's folder: its config, and its weights with or without a variant, whole or in shards.
_MODEL_FILE = re.compile(
    r"config\.json|diffusion_pytorch_model(?:\.([\w-]+?))?(?:-\d+-of-\d+)?\.(?:safetensors|bin)"
    r"|diffusion_pytorch_model\.(?:safetensors|bin)\.index(?:\.([\w-]+))?\.json"
)


def load_autoencoder(
    path: str | Path,
    *,
    family: str | None = None,
    subfolder: str | None = None,
    dtype: torch.dtype | None = None,
    torch_dtype: torch.dtype | None = None,
    variant: str | None = None,
    **arguments: Any,
) -> Opened:
    """Opens the autoencoder at ``path``, in eval mode.

    ``path`` may be the folder of a model (latentae's, or of one of diffusers' classes for images or video),
    of a run, or of a pipeline; a repository on the hub; or a single file, safetensors or a pickle, in the
    layout of latent diffusion, taming, diffusers or TAESD, also inside a Stable Diffusion or training
    checkpoint. For a TAESD in two files, name either file or their folder. The architecture of a single file
    is derived from its tensors. What they do not show is read from the file's metadata, which latentae
    writes, or from a ``config.json`` in the same folder. Pickles are read without executing anything.

    An AutoencoderKL becomes a ``KLVAE``, an AutoencoderKLFlux2 or FLUX.2's file a ``Flux2VAE``, a VQModel or
    a VQ model's file becomes a ``VQGAN``, and an AutoencoderTiny becomes a ``TinyAutoencoder``. diffusers'
    other autoencoders become a ``ForeignAutoencoder``, which is for evaluation only.

    The latents' scale and shift come from ``family``, else from the folder's config or the file's metadata,
    else from the family of a denoiser in the same file. Otherwise ``config.scaling_factor`` is None:
    ``encode`` and ``decode`` work, and ``to_latents`` raises.

    Args:
        path: a path, or ``owner/name`` on the hub if there is no such path.
        family: ``sd1``, ``sdxl``, ``sd3`` or ``flux``.
        subfolder: of a folder or repository. A run's ``model`` and a pipeline's autoencoder are found without
            it.
        dtype: of the weights; None means float32. ``torch_dtype`` is the older name.
        variant: which of a folder's files, as in ``diffusion_pytorch_model.fp16.safetensors``. For a single
            file, ``ema`` means the averaged weights, which LDM calls ``model_ema.*`` and other trainers
            ``ema_model`` or ``params_ema``, for example; None means the plain weights, or the averages if
            there are no others.
        arguments: constructor arguments that replace what was found, such as ``norm_num_groups``, which
            tensors do not show; for folders and repositories also arguments of ``from_pretrained``, such as
            ``device_map`` or ``revision``.

    Raises:
        ValueError: there is no autoencoder; the message says what is there.
    """
    if family == "flux2":
        raise ValueError(
            "family is 'flux2', but a FLUX.2 VAE needs none: its own tensors hold the statistics of its "
            "latents"
        )
    if family is not None and family not in FAMILIES:
        raise ValueError(f"family is {family!r}, but must be one of {', '.join(FAMILIES)}")
    groups = arguments.get("norm_num_groups", 1)
    if not isinstance(groups, int) or groups < 1:
        raise ValueError(f"norm_num_groups is {groups!r}, but must be a positive integer")
    dtype = _one_dtype(dtype, torch_dtype)
    place = Path(path).expanduser()
    _check_length(place)
    if place.is_file():
        if subfolder is not None:
            raise ValueError(f"subfolder is {subfolder!r}, but {place} is a file")
        if (place.parent / "progress.json").is_file():
            raise ValueError(
                f"{place} is part of a training checkpoint, which does not tell the model's settings; "
                "open the run's model folder, or continue the run with resume"
            )
        named = _MODEL_FILE.fullmatch(place.name)
        if named is None or not (place.parent / CONFIG).is_file():
            return _load_file(place, variant, family=family, torch_dtype=dtype, **arguments)
        # Open the folder: its config contains what tensors do not show, and a shard alone is incomplete.
        place, variant = place.parent, variant or named[1] or named[2]
    if place.is_dir() and look_for_config(place, subfolder) is None:
        encoder = find_pair(place / (subfolder or ""))
        if encoder is not None:
            return _load_file(encoder, variant, family=family, torch_dtype=dtype, **arguments)
    arguments = {"dtype": dtype, "variant": variant, **arguments}
    if place.is_dir():
        folder = find_model_folder(place, subfolder)
        return load_pretrained(str(folder), read_config(folder), family=family, **arguments)
    if isinstance(path, str) and _HUB_ID.fullmatch(path):
        config, part = fetch_config(path, subfolder, arguments)
        return load_pretrained(path, config, family=family, subfolder=part, **arguments)
    raise ValueError(f"there is no file or folder {path}")


def _check_length(place: Path) -> None:
    """Raises ValueError for a path that the file system does not allow."""
    try:
        place.exists()
    except OSError as error:
        raise ValueError(f"{str(place)[:60]}... cannot be a path here: {error.strerror}") from error


def is_single_file(path: str | Path) -> bool:
    """Returns whether the path is a file without a config, neither in its metadata nor in its folder."""
    place = Path(path).expanduser()
    return place.is_file() and not find_configs(place, read_metadata(place))


def _one_dtype(dtype: torch.dtype | None, torch_dtype: torch.dtype | None) -> torch.dtype | None:
    """Returns the value of ``dtype`` or its older name."""
    for name, value in (("dtype", dtype), ("torch_dtype", torch_dtype)):
        if value is not None and not (isinstance(value, torch.dtype) and value.is_floating_point):
            raise ValueError(f"{name} is {value!r}, but must be a floating-point torch.dtype or None")
    if dtype is not None and torch_dtype not in (None, dtype):
        raise ValueError(
            f"dtype is {dtype}, and its older name torch_dtype is {torch_dtype}: give dtype alone"
        )
    return torch_dtype if dtype is None else dtype


def _load_file(path: Path, variant: str | None, **arguments: Any) -> Autoencoder:
    if variant not in (None, "ema"):
        raise ValueError(f"variant is {variant!r}, but for a single file it must be 'ema' or None")
    return load_single_file(path, ema=variant == "ema", **arguments)
