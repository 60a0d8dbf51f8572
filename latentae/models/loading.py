"""Opening an autoencoder, whoever wrote it: a folder, a file, or a repository on the hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from latentae.models.checkpoints.families import FAMILIES
from latentae.models.checkpoints.folders import CONFIG, find_model_folder, read_config
from latentae.models.checkpoints.pretrained import fetch_config, load_pretrained
from latentae.models.checkpoints.single_file import Autoencoder, load_single_file

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(?<!\.safetensors)(?<!\.ckpt)(?<!\.pt)(?<!\.pth)(?<!\.bin)")
_MODEL_WEIGHTS = re.compile(r"diffusion_pytorch_model(?:\.([\w-]+))?\.(?:safetensors|bin)")


def load_autoencoder(
    path: str | Path,
    *,
    family: str | None = None,
    subfolder: str | None = None,
    torch_dtype: torch.dtype | None = None,
    variant: str | None = None,
    **arguments: Any,
) -> Autoencoder:
    """The autoencoder at ``path``, in eval mode.

    That may be the folder of a model (latentae's, or diffusers' AutoencoderKL, VQModel, AutoencoderTiny), of
    a run, or of a pipeline; the id of one on the hub; or a single file, safetensors or a pickle, in latent
    diffusion's, taming's, diffusers' or TAESD's layout, also within a whole Stable Diffusion checkpoint. The
    architecture of a single file is read off its tensors. Pickles are read without running anything.

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
        torch_dtype: of the weights; None means float32.
        variant: which of a folder's files, as in ``diffusion_pytorch_model.fp16.safetensors``. Of a single
            file, ``ema`` takes the averaged weights that LDM keeps as ``model_ema.*``; None the plain ones.
        arguments: constructor arguments of the model in place of what was found, such as ``norm_num_groups``,
            which tensors do not show; for folders and repositories also what ``from_pretrained`` takes, such
            as ``device_map`` or ``revision``.

    Raises:
        ValueError: nothing is there, or something else; the message says what it looks like.
    """
    if family is not None and family not in FAMILIES:
        raise ValueError(f"family is {family!r}, but must be one of {', '.join(FAMILIES)}")
    if torch_dtype is not None and not (
        isinstance(torch_dtype, torch.dtype) and torch_dtype.is_floating_point
    ):
        raise ValueError(f"torch_dtype is {torch_dtype!r}, but must be a floating-point torch.dtype or None")
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
        if is_single_file(place):
            return _load_file(place, variant, family=family, torch_dtype=torch_dtype, **arguments)
        # The weights in a model's folder: the config beside them knows what tensors do not show.
        named = _MODEL_WEIGHTS.fullmatch(place.name)
        place, variant = place.parent, variant or (named and named[1])
    arguments = {"torch_dtype": torch_dtype, "variant": variant, **arguments}
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
    """Whether a path is that of a file whose architecture shows in its tensors alone."""
    place = Path(path).expanduser()
    beside_config = _MODEL_WEIGHTS.fullmatch(place.name) and (place.parent / CONFIG).is_file()
    return place.is_file() and not beside_config


def _load_file(path: Path, variant: str | None, **arguments: Any) -> Autoencoder:
    if variant not in (None, "ema"):
        raise ValueError(f"variant is {variant!r}, but of a single file it must be 'ema' or None")
    return load_single_file(path, ema=variant == "ema", **arguments)
