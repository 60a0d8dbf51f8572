"""Hashes of a model and of data: whether a cache's latents are those of a given model and images."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentae.data import BrokenImageError, ImageSource
from latentae.data.annotations import Annotations
from latentae.latents.cache.folder import CacheSettings
from latentae.models import LatentAutoencoder, load_autoencoder

# Settings that change what an encoder computes and cannot be told from its weights.
_ENCODER_SETTINGS = ("norm_num_groups", "act_fn", "down_block_types", "mid_block_add_attention", "backbone")
_DECODER = ("decoder.", "post_quant_conv.")
_IMAGES_LOOKED_AT = 32


def model_hash(model: LatentAutoencoder, *, codes: bool = False) -> str:
    """Returns a SHA-256, in hexadecimal digits, of everything in a model that its latents depend on.

    The decoder is left out, so that a model whose decoder was fine-tuned reads the latents of the model that
    it came from. Scale and shift are left out, since they are compared on their own.

    Args:
        codes: whether the codebook is included.
    """
    settings = {name: model.config.get(name) for name in _ENCODER_SETTINGS}
    if codes:
        settings["quantizer"] = model.config.get("quantizer")
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=list).encode())
    left_out = _DECODER if codes else (*_DECODER, "quantize.")
    state: dict[str, Tensor] = model.state_dict()
    for name, value in sorted(state.items()):
        if not name.startswith(left_out):
            digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def normalisation_of(model: LatentAutoencoder) -> dict[str, list[float]] | None:
    """Returns ``shift`` and ``scale`` of ``to_latents``, a number per channel; None: they are not known."""
    try:
        shift, scale = model._normalisation(torch.zeros(1, model.latents_channels, 1, 1, dtype=torch.float64))
    except ValueError:
        return None
    whole = torch.zeros(model.latents_channels, 1, 1, dtype=torch.float64)
    return {
        "shift": (whole + shift).flatten().tolist(),
        "scale": (whole + scale).flatten().tolist(),
    }


def data_hash(source: ImageSource, annotations: Annotations, channels: int) -> str:
    """Returns a SHA-256 of the names of all images in order, their labels, and the pixels of 32 images."""
    digest = hashlib.sha256()
    for index in range(len(source)):
        digest.update(source.name(index).encode(errors="surrogateescape") + b"\0")
    if annotations.labels is not None:
        digest.update(annotations.labels.tobytes())
    digest.update(json.dumps(annotations.label_names).encode())
    count = min(_IMAGES_LOOKED_AT, len(source))
    for position in range(count):
        try:
            pixels: Any = source.load(position * len(source) // count, channels)
        except BrokenImageError:
            digest.update(b"broken")
        else:
            digest.update(f"{pixels.shape} {pixels.dtype}".encode() + pixels.tobytes())
    return digest.hexdigest()


def check_model(settings: CacheSettings, model: str | Path | LatentAutoencoder, folder: Path) -> None:
    """Raises ValueError unless the latents in ``folder``, made with ``settings``, are of this model.

    The decoder may differ.
    """
    opened = load_autoencoder(model) if isinstance(model, str | Path) else model
    if not isinstance(opened, LatentAutoencoder):
        raise ValueError(f"model is a {type(opened).__name__}: give a path, or what load_autoencoder returns")
    found, wanted = model_hash(opened, codes=settings.options["codes"]), settings.model["hash"]
    if found != wanted:
        raise ValueError(
            f"the latents in {folder} are of another model: of {settings.model['path']} "
            f"({settings.model['class']}, hash {wanted[:12]}), and this {type(opened).__name__} has the hash "
            f"{found[:12]}: encode the images with this model into another folder, or give the model that "
            "they are of, in the dtype that it had then"
        )
    if normalisation_of(opened) != settings.normalisation:
        raise ValueError(
            f"the latents in {folder} are of this model at another scale or shift, which it had when they "
            "were encoded: encode anew into another folder, or give the model as it was"
        )
