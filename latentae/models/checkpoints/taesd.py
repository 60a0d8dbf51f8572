"""TAESD's layouts: two sequential networks, side by side in one file."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor


def find_taesd(tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """TAESD's tensors under the names of diffusers' AutoencoderTiny, or None where these are others.

    Args:
        tensors: a checkpoint's, in diffusers' layout or with ``taesd_encoder.`` and ``taesd_decoder.``. In
            the latter the decoder counts from its clamp, which has no weights and no place in diffusers'.
    """
    state = {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(r"taesd_(en|de)coder\.(\d+)\.(.+)", name):
            side, number, rest = match.groups()
            state[f"{side}coder.layers.{int(number) - (side == 'de')}.{rest}"] = tensor
        elif re.match(r"(en|de)coder\.layers\.\d+\.", name):
            state[name] = tensor
    whole = {"encoder.layers.0.weight", "decoder.layers.0.weight"} <= state.keys()
    return state if whole else None


def taesd_arguments(state: Mapping[str, Tensor]) -> dict[str, int]:
    """The arguments of AutoencoderTiny that differ between TAESD's editions, from tensors under its names."""
    last = max((name for name in state if name.startswith("decoder.")), key=_number)
    return {
        "in_channels": state["encoder.layers.0.weight"].shape[1],
        "out_channels": state[last].shape[0],
        "latent_channels": state["decoder.layers.0.weight"].shape[1],
    }


def _number(name: str) -> int:
    return int(name.split(".")[2])
