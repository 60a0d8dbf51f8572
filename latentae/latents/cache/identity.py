"""What latents depend on: hashes of a model and of data, by which a cache knows its own."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor

from latentae.data import BrokenImageError, ImageSource
from latentae.data.annotations import Annotations
from latentae.models import LatentAutoencoder

# Settings that change what an encoder computes, and that its weights do not show.
_ENCODER_SETTINGS = ("norm_num_groups", "act_fn", "down_block_types", "mid_block_add_attention", "backbone")
_DECODER = ("decoder.", "post_quant_conv.")
_IMAGES_LOOKED_AT = 32


def model_hash(model: LatentAutoencoder, *, codes: bool = False) -> str:
    """A hash of all of a model that its latents depend on, as SHA-256 in hexadecimal digits.

    The decoder does not count, so that a model whose decoder alone was trained on reads the latents of the
    one that it came from; nor do scale and shift, which are compared by themselves.

    Args:
        codes: whether the codebook counts, too.
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
    """``shift`` and ``scale``, a number a channel, of ``to_latents``; None where they are not known."""
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
    """A hash of the names of all images in order, their labels, and the pixels of 32 of them."""
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
