"""The names of an autoencoder's tensors: latent diffusion's (and taming's), and diffusers'.

Both layouts hold the same tensors, but for two things: the decoder's levels are numbered from the image's
resolution upwards in one and from the latents' in the other, and the attention's projections are 1×1
convolutions in one and linear layers in the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

_RESNET = {"nin_shortcut": "conv_shortcut"}
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out"}
_LDM_RESNET = {diffusers: ldm for ldm, diffusers in _RESNET.items()}
_LDM_ATTENTION = {diffusers: ldm for ldm, diffusers in _ATTENTION.items()}
# What diffusers called them before version 0.18, as many published files still do.
_OLD_ATTENTION = {"query": "q", "key": "k", "value": "v", "proj_attn": "proj_out"}

_LDM_PROJECTION = re.compile(r".*\.(attn\.\d+|attn_1)\.(q|k|v|proj_out)\.weight")
_PROJECTION = re.compile(r".*\.attentions\.\d+\.(to_q|to_k|to_v|to_out\.0)\.weight")


def to_diffusers_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An autoencoder's tensors under diffusers' names; nothing is copied.

    Args:
        state: tensors under latent diffusion's names, ``encoder.down.0.block.0.norm1.weight``, without a
            prefix. All of the decoder's must be there, since its levels are counted. Any other name stays as
            it is, but diffusers' old names of the attention's parts become the present ones.
    """
    levels = _count(state, "decoder.up.")
    translated = {}
    for name, tensor in state.items():
        name = ".".join(_diffusers_parts(name.split("."), levels))
        if _PROJECTION.fullmatch(name) and tensor.ndim == 4 and tensor.shape[2:] == (1, 1):
            tensor = tensor[:, :, 0, 0]
        translated[name] = tensor
    return translated


def to_ldm_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An autoencoder's tensors under latent diffusion's names: undoes ``to_diffusers_names``; copies nothing.

    Args:
        state: tensors under the names that ``KLVAE``, ``VQGAN`` and diffusers' AutoencoderKL and VQModel give
            them. All of the decoder's must be there, since its levels are counted. Any other name stays.
    """
    levels = _count(state, "decoder.up_blocks.")
    translated = {}
    for name, tensor in state.items():
        name = ".".join(_ldm_parts(name.split("."), levels))
        if _LDM_PROJECTION.fullmatch(name) and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]
        translated[name] = tensor
    return translated


def _count(names: Iterable[str], before: str) -> int:
    """One more than the highest number that follows ``before``."""
    numbers = (name.removeprefix(before).split(".")[0] for name in names if name.startswith(before))
    return max((int(number) + 1 for number in numbers if number.isdecimal()), default=0)


def _diffusers_parts(parts: list[str], levels: int) -> list[str]:
    match parts:
        case ["encoder", "down", level, *block] if level.isdecimal():
            return ["encoder", "down_blocks", level, *_diffusers_block(block)]
        case ["decoder", "up", level, *block] if level.isdecimal():
            return ["decoder", "up_blocks", str(levels - 1 - int(level)), *_diffusers_block(block)]
        case [side, "mid", "block_1" | "block_2" as block, *inner]:
            return [side, "mid_block", *_diffusers_block(["block", str(int(block[-1]) - 1), *inner])]
        case [side, "mid", "attn_1", *inner]:
            return [side, "mid_block", *_diffusers_block(["attn", "0", *inner])]
        case ["encoder" | "decoder" as side, "norm_out", leaf]:
            return [side, "conv_norm_out", leaf]
        case [*block, "attentions", number, "query" | "key" | "value" | "proj_attn" as old, leaf]:
            return [*block, *_diffusers_block(["attn", number, _OLD_ATTENTION[old], leaf])]
    return parts


def _diffusers_block(parts: list[str]) -> list[str]:
    match parts:
        case ["block", number, layer, leaf]:
            return ["resnets", number, _RESNET.get(layer, layer), leaf]
        case ["attn", number, "query" | "key" | "value" | "proj_attn" as old, leaf]:
            return _diffusers_block(["attn", number, _OLD_ATTENTION[old], leaf])
        case ["attn", number, "proj_out", leaf] | ["attn", number, "to_out", "0", leaf]:
            return ["attentions", number, "to_out", "0", leaf]
        case ["attn", number, layer, leaf]:
            return ["attentions", number, _ATTENTION.get(layer, layer), leaf]
        case ["downsample" | "upsample" as layer, *inner]:
            return [f"{layer}rs", "0", *inner]
    return parts


def _ldm_parts(parts: list[str], levels: int) -> list[str]:
    match parts:
        case ["encoder", "down_blocks", level, *block] if level.isdecimal():
            return ["encoder", "down", level, *_ldm_block(block)]
        case ["decoder", "up_blocks", level, *block] if level.isdecimal():
            return ["decoder", "up", str(levels - 1 - int(level)), *_ldm_block(block)]
        case [side, "mid_block", "resnets", "0" | "1" as number, *inner]:
            _, _, *translated = _ldm_block(["resnets", number, *inner])
            return [side, "mid", f"block_{int(number) + 1}", *translated]
        case [side, "mid_block", "attentions", "0", *inner]:
            _, _, *translated = _ldm_block(["attentions", "0", *inner])
            return [side, "mid", "attn_1", *translated]
        case ["encoder" | "decoder" as side, "conv_norm_out", leaf]:
            return [side, "norm_out", leaf]
    return parts


def _ldm_block(parts: list[str]) -> list[str]:
    match parts:
        case ["resnets", number, layer, leaf]:
            return ["block", number, _LDM_RESNET.get(layer, layer), leaf]
        case ["attentions", number, "to_out", "0", leaf]:
            return ["attn", number, "proj_out", leaf]
        case ["attentions", number, layer, leaf]:
            return ["attn", number, _LDM_ATTENTION.get(layer, layer), leaf]
        case ["downsamplers" | "upsamplers" as layer, "0", *inner]:
            return [layer.removesuffix("rs"), *inner]
    return parts
