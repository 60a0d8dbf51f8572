"""Reads TAESD: two sequential networks, in one file or two, whose tensors show the layers.

``to_taesd_names`` is the way back, to the names in a pair of files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from torch import Tensor

from latentae.models.checkpoints.configs import WEIGHTS
from latentae.models.checkpoints.reading import Checkpoint, read_checkpoint
from latentae.models.tiny_layers import arguments_of, channels_of, count_doublings, layers_of

ENCODER, DECODER = "encoder", "decoder"
# TAESD's own class saves encoder.N, ComfyUI's files have taesd_encoder.N, diffusers has encoder.layers.N, and
# a pair of files has only N.
_NAME = re.compile(
    r"(?:(?P<prefix>.+?)\.)??(?:(?:taesd_)?(?P<side>encoder|decoder)\.(?P<layers>layers\.)?)?"
    r"(?P<number>\d+)\.(?P<rest>weight|bias|conv\.[024]\.\w+|skip\.weight|pool\.[013]\.\w+)"
)
_UNSHUFFLE, _SHUFFLE = "pixel_unshuffle", "pixel_shuffle"
_SIDE = re.compile(f"({ENCODER}|{DECODER})(?!.*({ENCODER}|{DECODER}))", re.IGNORECASE)  # the last one


@dataclass
class Half:
    """An encoder or a decoder of TAESD.

    Attributes:
        side: ``encoder`` or ``decoder``.
        tensors: number of a layer → {name inside the layer: tensor}. The decoder's layers are counted from
            its first convolution, as in diffusers: the clamp before it has no weights.
    """

    side: str
    tensors: dict[int, dict[str, Tensor]]

    def state(self) -> dict[str, Tensor]:
        """Returns the tensors under the names of diffusers' AutoencoderTiny."""
        return {
            f"{self.side}.layers.{number}.{rest}": tensor
            for number, layer in sorted(self.tensors.items())
            for rest, tensor in layer.items()
        }


@dataclass
class Taesd:
    """Both halves of TAESD under diffusers' names, and the arguments of a TinyAutoencoder for them."""

    state: dict[str, Tensor]
    arguments: dict[str, Any]


def find_taesd(path: Path, checkpoint: Checkpoint) -> Taesd | None:
    """Finds TAESD in the checkpoint read from ``path``; None where it is another model.

    Where it holds one half, the other one is read from a second file beside it.

    Raises:
        ValueError: half of TAESD, layers that no edition has, or halves that do not belong together.
    """
    halves = find_halves(checkpoint.tensors)
    if not halves:
        return None
    if len(halves) == 1:
        (side,) = halves
        other = find_other_half(path, side)
        halves = {**find_halves(read_checkpoint(other).tensors), **halves}
        if len(halves) == 1:
            raise ValueError(f"holds the {side} of a TAESD, but {other.name} does not hold the other half")
    encoder, decoder = halves[ENCODER], halves[DECODER]
    return Taesd({**encoder.state(), **decoder.state()}, taesd_arguments(encoder, decoder))


def find_halves(tensors: Mapping[str, Tensor]) -> dict[str, Half]:
    """Returns the halves of TAESD among a checkpoint's tensors, by side; empty where there is none.

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
            raise ValueError(
                f"holds several {side}s of TAESD, one under {prefix or ''!r}: save one by itself"
            )
        if side == DECODER and not is_diffusers:
            layers = {number - 1: layer for number, layer in layers.items()}
        halves[side] = Half(side, layers)
    return halves


# --- the way back ---


def to_taesd_names(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Returns a TinyAutoencoder's tensors as a pair of files has them: side → {``1.weight``: tensor}.

    Args:
        state: under the names of diffusers' AutoencoderTiny, as ``Half.state`` returns them.
    """
    halves: dict[str, dict[str, Tensor]] = {ENCODER: {}, DECODER: {}}
    for name, tensor in state.items():
        side, _, number, rest = name.split(".", 3)
        clamp = 1 if side == DECODER else 0  # it is the first layer of the decoder, without tensors
        halves[side][f"{int(number) + clamp}.{rest}"] = tensor
    return halves


def taesd_objection(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> str | None:
    """Returns why readers of a pair of files would build another model, as a clause; None if they would not.

    Args:
        state: a TinyAutoencoder's tensors, under their own names.
        config: its config.
    """
    files = to_taesd_names(state)
    try:
        halves = {side: find_halves(tensors).get(side) for side, tensors in files.items()}
        encoder, decoder = halves[ENCODER], halves[DECODER]
        if encoder is None or decoder is None:
            return (
                f"its {DECODER if decoder is None else ENCODER}'s tensors do not look like those of a TAESD"
            )
        shown = taesd_arguments(encoder, decoder)
    except ValueError as error:
        return f"read back, it {error}"
    for side, own, read in zip(halves, layers_of(config), layers_of(shown), strict=True):
        for number, (layer, other) in enumerate(zip_longest(own, read)):
            if layer != other:
                return f"layer {number} of its {side} is {layer!r}, but its tensors look like {other!r}"
    return None


# --- halves in two files ---


def find_other_half(path: Path, side: str) -> Path:
    """Finds the file with the other half of a model by its name.

    Args:
        path: of the file with the half ``side``.

    Raises:
        ValueError: there is none; the message says which name it must have.
    """
    other = DECODER if side == ENCODER else ENCODER
    named = _with_side(path, other)
    if named is None:
        raise ValueError(
            f"holds the {side} of a TAESD, and the name does not tell where its {other} is: call the two "
            f"files NAME_{ENCODER}{path.suffix} and NAME_{DECODER}{path.suffix}, in one folder"
        )
    if named.name == path.name:
        raise ValueError(f"holds the {side} of a TAESD, but its name says that it is the {other}: rename it")
    if (place := _in_any_format(named)) is not None:
        return place
    raise ValueError(f"holds the {side} of a TAESD: its {other} must lie beside it, as {named.name}")


def find_pair(folder: Path) -> Path | None:
    """Returns the encoder's file of the one pair of files in a folder; None where there is no pair.

    Raises:
        ValueError: there are several pairs.
    """
    pairs: dict[str, Path] = {}
    for suffix in WEIGHTS:  # the first one counts where a pair is there in two formats
        for path in sorted(folder.glob(f"*{suffix}")):
            word = _SIDE.search(path.stem)
            decoder = _with_side(path, DECODER)
            if word and word[1].lower() == ENCODER and decoder is not None and _in_any_format(decoder):
                pairs.setdefault(path.stem, path)
    if len(pairs) > 1:
        names = sorted(path.name for path in pairs.values())
        raise ValueError(
            f"{folder} holds {len(pairs)} autoencoders in two files each: name one, such as "
            f"{', '.join(names[:3])}"
        )
    return next(iter(pairs.values()), None)


def _in_any_format(path: Path) -> Path | None:
    """Returns the file of that name, whichever suffix of weights it has; None where there is none."""
    places = (path.with_suffix(suffix) for suffix in (path.suffix, *WEIGHTS))
    return next((place for place in places if place.is_file()), None)


def _with_side(path: Path, side: str) -> Path | None:
    """Replaces the last "encoder" or "decoder" in a file's name; None where there is neither."""
    word = _SIDE.search(path.stem)
    if word is None:
        return None
    new = side.upper() if word[1].isupper() else side.capitalize() if word[1][0].isupper() else side
    return path.with_name(path.stem[: word.start()] + new + path.stem[word.end() :] + path.suffix)


# --- the layers that tensors show ---


def taesd_arguments(encoder: Half, decoder: Half) -> dict[str, Any]:
    """Returns the arguments of a TinyAutoencoder that has these halves.

    Raises:
        ValueError: layers that no edition of TAESD has, or halves that do not belong together.
    """
    down, up = _describe_layers(encoder), _describe_layers(decoder)
    for side, layers in ((ENCODER, down), (DECODER, up)):
        _check_sequence(side, layers)
    if _UNSHUFFLE in down:
        up = [*up, _SHUFFLE]
    factors = count_doublings(down, "strided", _UNSHUFFLE), count_doublings(up, "upsample", _SHUFFLE)
    latents = channels_of(down)[-1], channels_of(up)[0]
    if factors[0] != factors[1] or latents[0] != latents[1]:
        raise ValueError(
            f"holds an encoder to {latents[0]} channels at 1/{2 ** factors[0]} of the size and a decoder "
            f"from {latents[1]} channels at 1/{2 ** factors[1]}: they do not belong together"
        )
    return arguments_of(down, up)


def _is_sequence(layers: Mapping[int, Mapping[str, Tensor]]) -> bool:
    """Whether these are TAESD's layers: 3x3 convolutions, and residual blocks of three of them."""
    kernels = [
        tensor
        for layer in layers.values()
        for rest, tensor in layer.items()
        if rest == "weight" or re.fullmatch(r"conv\.[024]\.weight", rest)
    ]
    has_blocks = any("conv.4.weight" in layer for layer in layers.values())
    return has_blocks and all(tuple(kernel.shape[2:]) == (3, 3) for kernel in kernels)


def _side_of(layers: Mapping[int, Mapping[str, Tensor]]) -> str:
    """Tells the halves apart: a decoder has an upsampling (no tensors) before each conv without a bias."""
    plain = [number for number, layer in layers.items() if layer.keys() == {"weight"}]
    upsampled = [number for number in plain if number - 1 not in layers]
    # With a single resolution there are no such convs, but a decoder begins with its clamp.
    return DECODER if (len(upsampled) == len(plain) if plain else min(layers) == 1) else ENCODER


def _describe_layers(half: Half) -> list[str]:
    """Describes an encoder's layers, or a decoder's after its clamp, as ``build_layers`` takes them."""
    layers, is_encoder = half.tensors, half.side == ENCODER
    described = [_UNSHUFFLE] if is_encoder and 0 not in layers else []
    for number in range(len(described), max(layers) + 1):
        layer = layers.get(number)
        if layer is None and number > 1 and not is_encoder:
            described.append("upsample")
        elif layer is None:
            if not {"weight", "bias"} <= layers.get(number - 1, {}).keys():
                raise ValueError(f"holds a TAESD {half.side} without the tensors of its layer {number}")
            described.append("relu")
        elif "weight" in layer:
            # A convolution before an activation halves the image, unless its pixels are folded into channels.
            is_stem = number + 1 not in layers and number < max(layers) and _UNSHUFFLE not in described
            strided = "strided_" if is_encoder and (is_stem or "bias" not in layer) else ""
            kind = f"{strided}conv{'' if 'bias' in layer else '_without_bias'}"
            described.append(_with_channels(kind, layer["weight"]))
        elif "conv.0.weight" in layer:
            kind = "pooled_block" if any(rest.startswith("pool.") for rest in layer) else "block"
            described.append(_with_channels(kind, layer["conv.0.weight"]))
        else:
            raise ValueError(
                f"holds a TAESD {half.side} whose layer {number} is neither a convolution nor a block: "
                f"it has {', '.join(sorted(layer))}"
            )
    return described


def _with_channels(kind: str, weight: Tensor) -> str:
    outputs, inputs = weight.shape[:2]
    return f"{kind} {inputs} {outputs}"


def _check_sequence(side: str, layers: list[str]) -> None:
    """Raises ValueError where layers do not fit each other or the last one is missing."""
    channels = channels_of(layers)
    if channels[1:-1:2] != channels[2::2] or not layers[-1].startswith("conv "):
        raise ValueError(f"holds a TAESD {side} with missing layers: it has {', '.join(layers)}")
