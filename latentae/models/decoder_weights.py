"""First weights of a decoder from a trained one of another shape: its teacher's, where shapes allow.

A narrower level keeps some channels of the teacher's level: of every group of the normalisation the first
ones, as many in each. So each group still has statistics of the same channels, and all layers of a level, and
all levels of one width, keep the same channels, as the residual connections between them require. The kept
weights are the teacher's own: in a small trial, larger weights or biases that make up for sums over fewer
channels trained no faster.

A wider level has its further channels after the teacher's in every group: they start at zero where they are
read, and fresh where they are computed.

A decoder of TAESD has no such groups, except in the branch of its pooled blocks: it keeps the first channels.

Where only the shape changes how levels connect, a shortcut that was the identity becomes the part of it that
fits. Residual blocks beyond the teacher's start as the identity; those that there are too many of are left
out, the last of a level first. An image enlarged by a pixel shuffle starts with equal pixels in every k × k.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentae.models.decoders import DecoderShape
from latentae.models.tiny_layers import POOL_GROUPS, shuffle_of

_BLOCK = re.compile(r"decoder\.up_blocks\.(\d+)\.resnets\.(\d+)\.(\w+)\.(weight|bias)")
_LEVEL = re.compile(r"decoder\.up_blocks\.(\d+)\.")
_LAST = "decoder.conv_out."


@dataclass(frozen=True)
class Channels:
    """Names the channels of a level that two decoders share.

    Attributes:
        own, teacher: the numbers of a shared channel in either, in the same order.
        width: of the level, in the former.
    """

    own: tuple[int, ...]
    teacher: tuple[int, ...]
    width: int


def shared_channels(width: int, teacher_width: int, groups: int) -> Channels:
    """Returns the first channels of each normalisation group, as many as both widths have."""
    own, teacher = width // groups, teacher_width // groups
    places = [(group, i) for group in range(groups) for i in range(min(own, teacher))]
    return Channels(
        own=tuple(group * own + i for group, i in places),
        teacher=tuple(group * teacher + i for group, i in places),
        width=width,
    )


@torch.no_grad()
def take_from_teacher(
    fresh: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    shape: DecoderShape,
    teacher: DecoderShape,
    groups: int,
) -> dict[str, Tensor]:
    """Returns the teacher's tensors, those of the decoder in the other shape; of equal shapes the very same.

    Args:
        fresh: the state of a KL-VAE with fresh weights.
        given: the teacher's state, with as many levels; numbers of image and latent channels may differ from
            those of ``fresh``, and stay.
        shape, teacher: of the two decoders.
        groups: of the normalisation, in both.
    """
    if shape == teacher:
        return dict(given)
    # From the image's resolution downwards; the blocks of a decoder are numbered upwards.
    levels = [shared_channels(*widths, groups) for widths in zip(shape.widths, teacher.widths, strict=True)]
    state = {name: value for name, value in given.items() if not name.startswith("decoder.")}
    for name, value in fresh.items():
        if name.startswith("decoder."):
            state[name] = _take(name, value.float().cpu(), given, levels).to(value)
    for part in ("weight", "bias"):
        state[_LAST + part] = _spread(state[_LAST + part], teacher.upscale, shape.upscale)
    return state


def _take(name: str, fresh: Tensor, given: Mapping[str, Tensor], levels: list[Channels]) -> Tensor:
    """Returns a tensor of the decoder with the teacher's values of the channels that both have."""
    rows, columns = _channels_of(name, levels)
    block = _BLOCK.fullmatch(name)
    if name not in given:
        if block is not None and block[3] == "conv_shortcut" and block[2] == "0":
            return _identity(fresh, rows, columns)
        # A block beyond the teacher's: nothing is added to what passes it.
        return torch.zeros_like(fresh) if block is not None and block[3] == "conv2" else fresh
    return _fit(fresh, given[name].float().cpu(), rows, columns)


def _fit(fresh: Tensor, given: Tensor, rows: Channels | None, columns: Channels | None) -> Tensor:
    """Returns the teacher's values of the shared outputs and inputs; other inputs at zero, outputs fresh."""
    kept = given if rows is None else given[list(rows.teacher)]
    if columns is not None and fresh.ndim > 1:
        read = kept[:, list(columns.teacher)]
        kept = kept.new_zeros(len(kept), columns.width, *kept.shape[2:])
        kept[:, list(columns.own)] = read
    if rows is None or len(rows.own) == rows.width:
        return kept
    # Outputs that the teacher does not have.
    result = kept.new_zeros(rows.width, *kept.shape[1:])
    if result.shape == fresh.shape:
        result.copy_(fresh)
    result[list(rows.own)] = kept
    return result


def _channels_of(name: str, levels: list[Channels]) -> tuple[Channels | None, Channels | None]:
    """Returns the channels of a tensor's outputs and inputs; None for those of images and latents."""
    if name.startswith(_LAST):
        return None, levels[0]
    if name.startswith("decoder.conv_norm_out."):
        return levels[0], None
    if name.startswith("decoder.conv_in."):
        return levels[-1], None
    place = _LEVEL.match(name)
    if place is None:  # the middle block
        return levels[-1], levels[-1]
    block = int(place[1])
    own = levels[-1 - block]
    before = levels[-block] if block > 0 else own
    inside = _BLOCK.fullmatch(name)
    if inside is not None and inside[2] == "0":  # the first block of a level changes the width
        if inside[3] == "norm1":
            return before, None
        if inside[3] in ("conv1", "conv_shortcut"):
            return own, before
    return own, own


# --- TAESD ---


@torch.no_grad()
def take_from_tiny_teacher(
    fresh: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    layers: Sequence[str],
    teacher: Sequence[str],
) -> dict[str, Tensor]:
    """Returns the teacher's tensors, those of the decoder in the other shape; of equal layers the very same.

    Args:
        fresh, given: as in ``take_from_teacher``, of a TinyAutoencoder.
        layers, teacher: of the two decoders, as ``build_layers`` takes them, with as many levels.
    """
    if list(layers) == list(teacher):
        return dict(given)
    state = {name: value for name, value in given.items() if not name.startswith("decoder.")}
    numbers = {place: number for number, place in enumerate(_places(teacher))}
    for number, (layer, place) in enumerate(zip(layers, _places(layers), strict=True)):
        there = numbers.get(place)
        for name in [name for name in fresh if name.startswith(f"decoder.layers.{number}.")]:
            part = name.removeprefix(f"decoder.layers.{number}.")
            value = fresh[name].float().cpu()
            if there is None:
                # A block beyond the teacher's: its input is not negative, and ReLU leaves it as it is.
                adds = part.startswith("conv.4.") or part == "pool.3.weight"
                state[name] = (torch.zeros_like(value) if adds else value).to(fresh[name])
                continue
            kept = given[f"decoder.layers.{there}.{part}"].float().cpu()
            if place == "last":
                folds = shuffle_of(teacher), shuffle_of(layers)
                kept = _fit(kept, kept, None, _columns(part, layer, teacher[there]))
                kept = _spread(kept, *folds)
            else:
                rows = _rows(part, layer, teacher[there])
                columns = None if place == "first" else _columns(part, layer, teacher[there])
                kept = _fit(value, kept, rows, columns)
            state[name] = kept.to(fresh[name])
    return state


def _places(layers: Sequence[str]) -> list[str]:
    """Names the place of each layer of a decoder, the same in decoders of other widths and depths."""
    convs = [number for number, layer in enumerate(layers) if layer.startswith("conv ")]
    places, level, block = [], 0, 0
    for number, layer in enumerate(layers):
        kind = layer.split()[0]
        if number in (convs[0], convs[-1]):
            places.append("first" if number == convs[0] else "last")
        elif kind.endswith("block"):
            places.append(f"level {level} block {block}")
            block += 1
        else:
            if kind == "upsample":
                level, block = level + 1, 0
            places.append(f"level {level} {kind}")
    return places


def _rows(part: str, layer: str, teacher: str) -> Channels:
    return _of_tiny(layer, teacher, 1, is_hidden=part.startswith(("pool.0.", "pool.1.")))


def _columns(part: str, layer: str, teacher: str) -> Channels:
    return _of_tiny(layer, teacher, 0, is_hidden=part.startswith("pool.3."))


def _of_tiny(layer: str, teacher: str, side: int, *, is_hidden: bool) -> Channels:
    """Returns the shared outputs (``side`` 1) or inputs (0) of a part of a layer.

    Args:
        is_hidden: whether they are the normalised channels of a pooled block's branch.
    """
    own, its = (int(text.split()[1:][side]) for text in (layer, teacher))
    return shared_channels(4 * own, 4 * its, POOL_GROUPS) if is_hidden else shared_channels(own, its, 1)


def _identity(fresh: Tensor, rows: Channels | None, columns: Channels | None) -> Tensor:
    """Returns a shortcut that passes on the channels that both of its sides share with the teacher's."""
    result = torch.zeros_like(fresh)
    if fresh.ndim > 1 and rows is not None and columns is not None:
        places = dict(zip(columns.teacher, columns.own, strict=True))
        for own, teacher in zip(rows.own, rows.teacher, strict=True):
            if teacher in places:
                result[own, places[teacher]] = 1
    return result


def _spread(values: Tensor, before: int, after: int) -> Tensor:
    """Returns the last layer's tensor for another pixel shuffle: [C · before², ...] -> [C · after², ...]."""
    if before == after:
        return values
    pixels = values.unflatten(0, (-1, before, before))
    if after > before:
        for axis in (1, 2):
            pixels = pixels.repeat_interleave(after // before, dim=axis)
    else:
        ratio = before // after
        pixels = pixels.unflatten(1, (after, ratio)).mean(2).unflatten(2, (after, ratio)).mean(3)
    return pixels.flatten(0, 2).contiguous()
