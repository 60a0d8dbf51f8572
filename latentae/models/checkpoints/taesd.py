"""TAESD's layouts: two sequential networks, in one file or in one each, and the layers that tensors show."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

ENCODER, DECODER = "encoder", "decoder"
# TAESD's own class saves encoder.N, ComfyUI's files have taesd_encoder.N, diffusers encoder.layers.N, and the
# two files of an edition N alone.
_NAME = re.compile(
    r"(?:(?P<prefix>.+?)\.)??(?:(?:taesd_)?(?P<side>encoder|decoder)\.(?P<layers>layers\.)?)?"
    r"(?P<number>\d+)\.(?P<rest>weight|bias|conv\.[024]\.\w+|skip\.weight|pool\.[013]\.\w+)"
)
_UNSHUFFLE, _SHUFFLE = "pixel_unshuffle", "pixel_shuffle"


@dataclass
class Half:
    """An encoder or a decoder of TAESD.

    Attributes:
        side: ``encoder`` or ``decoder``.
        tensors: by what follows the number of their layer, by that number. The decoder's layers are counted
            from its first convolution, as diffusers does: the clamp before it has no weights.
    """

    side: str
    tensors: dict[int, dict[str, Tensor]]

    def state(self) -> dict[str, Tensor]:
        """The tensors under the names of diffusers' AutoencoderTiny."""
        return {
            f"{self.side}.layers.{number}.{rest}": tensor
            for number, layer in sorted(self.tensors.items())
            for rest, tensor in layer.items()
        }


def find_halves(tensors: Mapping[str, Tensor]) -> dict[str, Half]:
    """The halves of TAESD among a checkpoint's tensors, by side; empty where there is none.

    Args:
        tensors: in any of TAESD's layouts, under any prefix.

    Raises:
        ValueError: several encoders, or several decoders.
    """
    found: dict[tuple[str | None, str | None, bool], dict[int, dict[str, Tensor]]] = {}
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        if match is not None:
            key = (match["prefix"], match["side"], match["layers"] is not None)
            found.setdefault(key, {}).setdefault(int(match["number"]), {})[match["rest"]] = tensor
    halves: dict[str, Half] = {}
    for (prefix, side, is_diffusers), layers in found.items():
        if not _is_sequence(layers):
            continue
        if side is None:
            side = _side_of(layers)
        if side in halves:
            raise ValueError(f"holds several {side}s of TAESD, one under {prefix!r}: save one by itself")
        if side == DECODER and not is_diffusers:
            layers = {number - 1: layer for number, layer in layers.items()}
        halves[side] = Half(side, layers)
    return halves


def taesd_arguments(encoder: Half, decoder: Half) -> dict[str, Any]:
    """The arguments of a TinyAutoencoder that has these halves.

    Raises:
        ValueError: layers that no edition of TAESD has, or halves that do not belong together.
    """
    down, up = _encoder_layers(encoder), _decoder_layers(decoder)
    for side, layers in ((ENCODER, down), (DECODER, up)):
        _check_sequence(side, layers)
    if _UNSHUFFLE in down:
        up = [*up, _SHUFFLE]
    folds = 4 if _UNSHUFFLE in down else 1  # 2x2 pixels, as channels
    factors = _doublings(down, "strided", _UNSHUFFLE), _doublings(up, "upsample", _SHUFFLE)
    latents = _channels(down)[-1], _channels(up)[0]
    if factors[0] != factors[1] or latents[0] != latents[1]:
        raise ValueError(
            f"holds an encoder to {latents[0]} channels at 1/{2 ** factors[0]} of the size and a decoder "
            f"from {latents[1]} channels at 1/{2 ** factors[1]}: they do not belong together"
        )
    widths, blocks = _levels(down, "strided_conv_without_bias")
    up_widths, up_blocks = _levels(up, "conv_without_bias")
    arguments: dict[str, Any] = {
        "in_channels": _channels(down)[0] // folds,
        "out_channels": _channels(up)[-1] // folds,
        "latent_channels": latents[0],
        "encoder_block_out_channels": widths,
        "decoder_block_out_channels": up_widths,
        "num_encoder_blocks": blocks,
        "num_decoder_blocks": up_blocks,
    }
    stock = _stock_layers(**arguments)
    return arguments if stock == (down, up) else {**arguments, "encoder_layers": down, "decoder_layers": up}


def _is_sequence(layers: Mapping[int, Mapping[str, Tensor]]) -> bool:
    """Whether these are TAESD's: convolutions of 3x3 and residual blocks of three of them."""
    kernels = [
        tensor
        for layer in layers.values()
        for rest, tensor in layer.items()
        if rest == "weight" or re.fullmatch(r"conv\.[024]\.weight", rest)
    ]
    has_blocks = any("conv.4.weight" in layer for layer in layers.values())
    return has_blocks and all(tuple(kernel.shape[2:]) == (3, 3) for kernel in kernels)


def _side_of(layers: Mapping[int, Mapping[str, Tensor]]) -> str:
    """Which half it is: a decoder has an upsampling, without tensors, before each conv without a bias."""
    plain = [number for number, layer in layers.items() if layer.keys() == {"weight"}]
    upsampled = [number for number in plain if number - 1 not in layers]
    # One of a single resolution has none of these; a decoder begins with its clamp.
    return DECODER if (len(upsampled) == len(plain) if plain else min(layers) == 1) else ENCODER


def _encoder_layers(half: Half) -> list[str]:
    """An encoder's layers, as ``build_layers`` takes them."""
    layers = half.tensors
    described = [_UNSHUFFLE] if 0 not in layers else []
    for number in range(len(described), max(layers) + 1):
        if number not in layers:
            described.append(_activation(half, number))
        elif "weight" in layers[number]:
            # Convolutions before an activation halve the image, but for one whose pixels were folded.
            is_stem = number + 1 not in layers and number < max(layers) and _UNSHUFFLE not in described
            has_bias = "bias" in layers[number]
            strided = "strided_" if is_stem or not has_bias else ""
            described.append(_described(half, number, f"{strided}conv{'' if has_bias else '_without_bias'}"))
        else:
            described.append(_described_block(half, number))
    return described


def _decoder_layers(half: Half) -> list[str]:
    """A decoder's layers after its clamp, as ``build_layers`` takes them."""
    layers = half.tensors
    described: list[str] = []
    for number in range(max(layers) + 1):
        if number not in layers:
            described.append("upsample" if number > 1 else _activation(half, number))
        elif "weight" in layers[number]:
            has_bias = "bias" in layers[number]
            described.append(_described(half, number, f"conv{'' if has_bias else '_without_bias'}"))
        else:
            described.append(_described_block(half, number))
    return described


def _activation(half: Half, number: int) -> str:
    """A layer without tensors after a convolution with a bias."""
    before = half.tensors.get(number - 1, {})
    if not {"weight", "bias"} <= before.keys():
        raise ValueError(f"holds a TAESD {half.side} without the tensors of its layer {number}")
    return "relu"


def _described_block(half: Half, number: int) -> str:
    layer = half.tensors[number]
    if "conv.0.weight" not in layer:
        raise ValueError(
            f"holds a TAESD {half.side} whose layer {number} is no convolution and no block: it has "
            f"{', '.join(sorted(layer))}"
        )
    kind = "pooled_block" if any(rest.startswith("pool.") for rest in layer) else "block"
    outputs, inputs = layer["conv.0.weight"].shape[:2]
    return f"{kind} {inputs} {outputs}"


def _described(half: Half, number: int, kind: str) -> str:
    outputs, inputs = half.tensors[number]["weight"].shape[:2]
    return f"{kind} {inputs} {outputs}"


def _check_sequence(side: str, layers: list[str]) -> None:
    """Raises ValueError for layers that do not fit each other, or an end that is missing."""
    channels = _channels(layers)
    if channels[1:-1:2] != channels[2::2] or not layers[-1].startswith("conv "):
        raise ValueError(f"holds a TAESD {side} of which layers are missing: it has {', '.join(layers)}")


def _channels(layers: list[str]) -> list[int]:
    """All numbers of channels, from the input to the output."""
    return [int(number) for layer in layers for number in layer.split()[1:]]


def _doublings(layers: list[str], *kinds: str) -> int:
    """How many layers change the resolution by two."""
    return sum(layer.startswith(kinds) for layer in layers)


def _levels(layers: list[str], change: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Width and number of blocks of each level; a new one begins with each layer of the kind ``change``."""
    widths, blocks = [_channels(layers)[1]], [0]
    for layer in layers:
        kind, *channels = layer.split()
        if kind == change:
            widths.append(int(channels[1]))
            blocks.append(0)
        elif kind.endswith("block"):
            widths[-1] = int(channels[1])
            blocks[-1] += 1
    return tuple(widths), tuple(blocks)


def _stock_layers(
    *,
    in_channels: int,
    out_channels: int,
    latent_channels: int,
    encoder_block_out_channels: tuple[int, ...],
    decoder_block_out_channels: tuple[int, ...],
    num_encoder_blocks: tuple[int, ...],
    num_decoder_blocks: tuple[int, ...],
) -> tuple[list[str], list[str]]:
    """The layers that diffusers' AutoencoderTiny has with these arguments."""
    down: list[str] = []
    for width, blocks in zip(encoder_block_out_channels, num_encoder_blocks, strict=True):
        down.append(f"strided_conv_without_bias {width} {width}" if down else f"conv {in_channels} {width}")
        down += [f"block {width} {width}"] * blocks
    down.append(f"conv {encoder_block_out_channels[-1]} {latent_channels}")
    up = [f"conv {latent_channels} {decoder_block_out_channels[0]}", "relu"]
    for width, blocks in zip(decoder_block_out_channels, num_decoder_blocks, strict=True):
        up += [f"block {width} {width}"] * blocks
        up += ["upsample", f"conv_without_bias {width} {width}"]
    return down, [*up[:-2], f"conv {decoder_block_out_channels[-1]} {out_channels}"]
