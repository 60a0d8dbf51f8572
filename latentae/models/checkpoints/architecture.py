"""Infers the architecture of an autoencoder from the names and shapes of its tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

_CODEBOOK = "quantize.embedding.weight"
_MEAN = "bn.running_mean"  # of FLUX.2's latents
_GROUPS = 32  # of every published autoencoder of this kind, and of latent diffusion's and taming's code
# Widths of published models: SD, SDXL, SD 3, FLUX and their like; then the f4, f8, f16 and f32 models of
# latent diffusion and taming; aMUSEd; CogView 4.
_PUBLISHED = {
    (128, 256, 512, 512),
    (128, 256, 512),
    (128, 256, 256, 512),
    (128, 128, 256, 256, 512),
    (128, 128, 256, 512, 512),
    (128, 128, 256, 256, 512, 512),
    (128, 256, 256, 512, 768),
    (128, 512, 1024, 1024),
}


@dataclass
class Architecture:
    """An autoencoder's class and constructor arguments, as far as its tensors show them.

    Attributes:
        quantized: whether it is a VQ model; otherwise a KL-VAE.
        arguments: for the constructor of ``VQGAN`` or ``KLVAE``.
        is_flux2: whether it is a ``Flux2VAE``.
        guessed_groups: whether ``norm_num_groups`` is a guess. Tensors do not show it, and no published model
            has these widths.
    """

    quantized: bool
    arguments: dict[str, Any]
    guessed_groups: bool
    is_flux2: bool = False

    @property
    def latent_channels(self) -> int:
        """Channels of what ``encode`` returns; for a VQ model the length of a code."""
        return int(self.arguments["vq_embed_dim" if self.quantized else "latent_channels"])

    @property
    def factor(self) -> int:
        """Pixels per latent along each side."""
        return int(2 ** (len(self.arguments["block_out_channels"]) - 1))


def infer_architecture(
    state: Mapping[str, Tensor], norm_num_groups: int | None = None, *, is_ldm: bool = False
) -> Architecture:
    """Returns the architecture of the model that these tensors belong to.

    Tensors do not show the number of normalisation groups. It is 32 in latent diffusion's layout and in
    published models. Other widths are assumed to have 32 groups, too, if 32 divides them.

    Args:
        state: the tensors of an autoencoder under diffusers' names.
        norm_num_groups: the number of groups, where the caller knows it.
        is_ldm: whether the names were latent diffusion's, whose code always has 32 groups.

    Raises:
        ValueError: neither ``KLVAE`` nor ``VQGAN`` can hold the tensors, or 32 does not divide the widths and
            ``norm_num_groups`` is None; the message says which and why.
    """
    _check_kind(state)
    widths = _widths(state)
    groups = _check_groups(widths, norm_num_groups)
    down, up = (
        [_count(state, f"{blocks}.{level}.attentions.") > 0 for level in range(len(widths))]
        for blocks in ("encoder.down_blocks", "decoder.up_blocks")
    )
    arguments: dict[str, Any] = {
        "in_channels": state["encoder.conv_in.weight"].shape[1],
        "out_channels": _shape(state, "decoder.conv_out.weight")[0],
        "block_out_channels": widths,
        "down_block_types": tuple("AttnDownEncoderBlock2D" if x else "DownEncoderBlock2D" for x in down),
        "up_block_types": tuple("AttnUpDecoderBlock2D" if x else "UpDecoderBlock2D" for x in up),
        "layers_per_block": _count(state, "encoder.down_blocks.0.resnets."),
        "latent_channels": state["decoder.conv_in.weight"].shape[1],
        "mid_block_add_attention": _count(state, "encoder.mid_block.attentions.") > 0,
        "norm_num_groups": groups,
    }
    guessed = norm_num_groups is None and not is_ldm and widths not in _PUBLISHED
    if _CODEBOOK in state:
        arguments["num_vq_embeddings"], arguments["vq_embed_dim"] = _shape(state, _CODEBOOK)
        return Architecture(quantized=True, arguments=arguments, guessed_groups=guessed)
    for name in ("quant_conv", "post_quant_conv"):
        arguments[f"use_{name}"] = f"{name}.weight" in state
    if _MEAN in state:
        _check_statistics(state, arguments["latent_channels"])
        decoder_widths = _decoder_widths(state, len(widths))
        _check_groups(decoder_widths, groups)
        if decoder_widths != widths:
            arguments["decoder_block_out_channels"] = decoder_widths
        return Architecture(quantized=False, arguments=arguments, guessed_groups=guessed, is_flux2=True)
    # The stock class's default, since SDXL's own weights overflow in float16. Pipelines then use the conv.
    arguments["force_upcast"] = arguments["use_post_quant_conv"]
    return Architecture(quantized=False, arguments=arguments, guessed_groups=guessed)


def _check_kind(state: Mapping[str, Tensor]) -> None:
    """Raises ValueError for related models that share some of the names."""
    if any(tensor.ndim == 5 for tensor in state.values()):
        raise ValueError("is a video autoencoder: its convolutions have three dimensions")
    for name in ("encoder.conv_in.weight", "decoder.conv_in.weight"):
        if state[name].ndim != 4:
            raise ValueError(
                f"has {name} of shape {list(state[name].shape)}, but a convolution has four dimensions"
            )
    if "quantize.embed.weight" in state:
        raise ValueError("is a VQGAN with a Gumbel quantizer, which is not supported")
    encoded, latents = _shape(state, "encoder.conv_out.weight")[0], state["decoder.conv_in.weight"].shape[1]
    if _CODEBOOK in state and encoded != latents:
        raise ValueError(f"has an encoder that returns {encoded} channels and a decoder that takes {latents}")
    if _CODEBOOK not in state and encoded != 2 * latents:
        raise ValueError(
            f"has no codebook ({_CODEBOOK}), and its encoder returns {encoded} channels, where a posterior "
            f"over {latents} needs {2 * latents}"
        )


def _widths(state: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Returns the width of each level, from the image's resolution downwards."""
    count = _count(state, "encoder.down_blocks.")
    first = state["encoder.conv_in.weight"].shape[0]
    widths = tuple(_shape(state, f"encoder.down_blocks.{i}.resnets.0.conv1.weight")[0] for i in range(count))
    if not widths or widths[0] != first:
        raise ValueError(
            f"has levels of widths {list(widths)} after {first} channels at the start, but diffusers' "
            "encoder starts with the first level's width (a multiplier of 1)"
        )
    for i in range(count - 1):
        if f"encoder.down_blocks.{i}.downsamplers.0.conv.weight" not in state:
            raise ValueError(f"has no convolution that halves the resolution after level {i}")
    return widths


def _decoder_widths(state: Mapping[str, Tensor], levels: int) -> tuple[int, ...]:
    """Returns the width of each level of the decoder, from the image's resolution downwards."""
    names = (f"decoder.up_blocks.{levels - 1 - i}.resnets.0.conv1.weight" for i in range(levels))
    return tuple(_shape(state, name)[0] for name in names)


def _check_statistics(state: Mapping[str, Tensor], latent_channels: int) -> None:
    """Raises ValueError where the statistics of FLUX.2's latents are not of 2x2 patches of the latents."""
    for name in (_MEAN, "bn.running_var"):
        if _shape(state, name) != (4 * latent_channels,):
            raise ValueError(
                f"has {name} of shape {list(_shape(state, name))}, but 2x2 patches of {latent_channels} "
                f"latent channels need [{4 * latent_channels}]"
            )


def _check_groups(widths: tuple[int, ...], norm_num_groups: int | None) -> int:
    """Returns the number of groups, which must divide all widths; None means the usual one."""
    groups = _GROUPS if norm_num_groups is None else norm_num_groups
    if not any(width % groups for width in widths):
        return groups
    if norm_num_groups is not None:
        raise ValueError(f"has widths {list(widths)}, which norm_num_groups {groups} does not divide")
    largest = math.gcd(*widths)
    possible = [str(number) for number in range(1, largest + 1) if largest % number == 0]
    raise ValueError(
        f"does not tell how many groups its normalisation has, and the usual {_GROUPS} does not divide "
        f"widths {list(widths)}: pass norm_num_groups ({' or '.join(possible[:12])}), put the model's "
        "config.json beside the file, or write a folder that records it with `latentae export FILE "
        "--norm-num-groups N --format diffusers --out FOLDER`"
    )


def _count(state: Mapping[str, Tensor], before: str) -> int:
    """Counts the different numbers that follow ``before``."""
    return len({name.removeprefix(before).split(".")[0] for name in state if name.startswith(before)})


def _shape(state: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    if name not in state:
        raise ValueError(f"lacks {name}")
    return tuple(state[name].shape)
