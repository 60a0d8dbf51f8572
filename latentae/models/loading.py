"""Opening an autoencoder, whoever wrote it: a folder, a file, or a repository on the hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from latentae.models.checkpoints.configs import CONFIG, find_model_folder, look_for_config, read_config
from latentae.models.checkpoints.families import FAMILIES
from latentae.models.checkpoints.open import (
    Autoencoder,
    fetch_config,
    find_configs,
    load_pretrained,
    load_single_file,
)
from latentae.models.checkpoints.reading import read_metadata
from latentae.models.checkpoints.taesd import find_pair

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(?<!\.safetensors)(?<!\.ckpt)(?<!\.pt)(?<!\.pth)(?<!\.bin)")
# The files of a model's folder: its config, and weights of a variant or none, whole or in shards.
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
) -> Autoencoder:
    """The autoencoder at ``path``, in eval mode.

    That may be the folder of a model (latentae's, or diffusers' AutoencoderKL, VQModel, AutoencoderTiny), of
    a run, or of a pipeline; the id of one on the hub; or a single file, safetensors or a pickle, in latent
    diffusion's, taming's, diffusers' or TAESD's layout, also within a whole Stable Diffusion checkpoint or
    a trainer's. Of TAESD in two files either may be named, or their folder. The architecture of a single file
    is read off its tensors; what they do not show is read in the file's metadata, where latentae writes it,
    or in a ``config.json`` beside the file. Pickles are read without running anything.

    An AutoencoderKL becomes a ``KLVAE``, a VQModel and the file of a VQ model a ``VQGAN``, and an
    AutoencoderTiny a ``TinyAutoencoder``, which is for evaluation only.

    The latents' scale and shift are those of ``family``; else those in the folder's config or the file's
    metadata; else those of the family whose denoiser lies in the same file. Where none of these says, the
    model's ``config.scaling_factor`` is None: ``encode`` and ``decode`` work, and ``to_latents`` raises.

    Args:
        path: a path, or ``owner/name`` on the hub where there is no such path.
        family: ``sd1``, ``sdxl``, ``sd3`` or ``flux``.
        subfolder: of a folder or repository; a run's ``model`` and a pipeline's autoencoder are found by
            themselves.
        dtype: of the weights; None means float32. ``torch_dtype`` is its older name.
        variant: which of a folder's files, as in ``diffusion_pytorch_model.fp16.safetensors``. Of a single
            file, ``ema`` takes the averaged weights, which LDM keeps as ``model_ema.*`` and other trainers
            under names such as ``ema_model`` or ``params_ema``; None takes the plain ones, or the averages
            where the file has nothing else.
        arguments: constructor arguments of the model in place of what was found, such as ``norm_num_groups``,
            which tensors do not show; for folders and repositories also what ``from_pretrained`` takes, such
            as ``device_map`` or ``revision``.

    Raises:
        ValueError: nothing is there, or something else; the message says what it looks like.
    """
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
        # The config beside the weights knows what tensors do not show, and a shard is of no use alone.
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
    """Raises ValueError for a path that the file system cannot have."""
    try:
        place.exists()
    except OSError as error:
        raise ValueError(f"{str(place)[:60]}... cannot be a path here: {error.strerror}") from error


def is_single_file(path: str | Path) -> bool:
    """Whether a path is that of a file that no config describes, neither in it nor beside it."""
    place = Path(path).expanduser()
    return place.is_file() and not find_configs(place, read_metadata(place))


def _one_dtype(dtype: torch.dtype | None, torch_dtype: torch.dtype | None) -> torch.dtype | None:
    """What ``dtype`` or its older name says."""
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
        raise ValueError(f"variant is {variant!r}, but of a single file it must be 'ema' or None")
    return load_single_file(path, ema=variant == "ema", **arguments)
