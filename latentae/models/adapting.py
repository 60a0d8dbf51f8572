"""Taking up the weights of a model that has other numbers of channels or codes: what fits is kept.

A layer that gains outputs keeps its old ones and has fresh weights for the new. A layer that gains inputs
keeps its weights for the old ones and has zeros for the new. So a model that gains latent channels,
dimensions of codes or image channels reconstructs at first what it did before. What the zeros multiply is not
zero: they learn in the first step, and from the second on what is fresh before them. What is lost is cut off
at the end.

Grey is the mean of the colours: to one image channel a first layer sums its weights and a last layer averages
them, and from one they are spread over all. So a grey image is encoded as it was as a colour image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latentae.models.architecture import architecture_differences
from latentae.models.kl import KLVAE
from latentae.models.vq import VQVAE

# The first layers of the two backbones, and the last.
_FIRST_LAYERS = ("encoder.conv_in", "encoder.down.0")
_LAST_LAYER = "decoder.conv_out"
# Layers whose outputs (inputs) are a posterior's mean and log-variance, one after the other.
_MOMENTS_OUT = ("encoder.conv_out", "quant_conv")
_MOMENTS_IN = ("quant_conv",)


@dataclass(frozen=True)
class AdaptedTensor:
    """A tensor whose size changed on the way from one model to the other.

    Attributes:
        name: in both models.
        shape_before, shape: of the pretrained model's, and of what became of it.
        change: what was done, in words.
    """

    name: str
    shape_before: tuple[int, ...]
    shape: tuple[int, ...]
    change: str

    def __str__(self) -> str:
        return f"{self.name} {list(self.shape_before)} -> {list(self.shape)}: {self.change}"


@torch.no_grad()
def load_what_fits(model: KLVAE | VQVAE, pretrained: KLVAE | VQVAE) -> tuple[AdaptedTensor, ...]:
    """Puts the weights of ``pretrained`` into ``model``, on its device and in its dtype.

    Numbers of image channels, latent channels and codes may differ, as this module's text says.

    Args:
        model: changed in place; its weights are the fresh ones.
        pretrained: left as it is.

    Returns:
        the tensors that did not go in as they are, in the model's order.

    Raises:
        ValueError: a KL-VAE's weights for a VQ model or the reverse, or another architecture; then nothing is
            changed.
    """
    if isinstance(model, KLVAE) != isinstance(pretrained, KLVAE):
        raise ValueError(
            f"it holds a {type(pretrained).__name__}, and the config asks for a {type(model).__name__}"
        )
    differences = architecture_differences(model, pretrained)
    if differences:
        raise ValueError(
            f"it has another architecture than the config asks for: {'; '.join(map(str, differences))}. "
            "Leave these keys out, or give them the pretrained model's values"
        )
    fresh, given = model.state_dict(), pretrained.state_dict()
    if strange := sorted(fresh.keys() ^ given.keys()):
        raise ValueError(
            f"it has another architecture than the config asks for: {len(strange)} tensors are in one of "
            f"them only, such as {strange[0]}"
        )
    report: list[AdaptedTensor] = []
    state = {}
    for name, value in fresh.items():
        state[name] = given[name]
        if value.shape != given[name].shape:
            state[name], change = _adapt(model, name, value.float().cpu(), given[name].float().cpu())
            report.append(AdaptedTensor(name, tuple(given[name].shape), tuple(value.shape), change))
    model.load_state_dict(state)
    return tuple(report)


def _adapt(model: nn.Module, name: str, fresh: Tensor, given: Tensor) -> tuple[Tensor, str]:
    """A tensor like ``fresh`` with what fits of ``given``, and what was done."""
    layer, _, part = name.rpartition(".")
    transposed = isinstance(model.get_submodule(layer), nn.ConvTranspose2d) and part == "weight"
    if transposed:  # then the inputs come first
        fresh, given = fresh.transpose(0, 1), given.transpose(0, 1)
    is_kl = isinstance(model, KLVAE)
    rows = 2 if is_kl and layer in _MOMENTS_OUT else 1
    columns = 2 if is_kl and layer in _MOMENTS_IN else 1
    if layer == _LAST_LAYER and 1 in (len(fresh), len(given)):
        result, change = _last_layer_of_grey(fresh, given)
    elif layer in _FIRST_LAYERS and 1 in (fresh.shape[1], given.shape[1]):
        result, change = _first_layer_of_grey(fresh, given)
    else:
        result, change = _overlap(fresh, given, rows, columns)
    return (result.transpose(0, 1) if transposed else result).contiguous(), change


def _first_layer_of_grey(fresh: Tensor, given: Tensor) -> tuple[Tensor, str]:
    """From or to one input: the mean over the channels of what comes in is seen as it was."""
    spread = given.sum(dim=1, keepdim=True).expand_as(fresh) / fresh.shape[1]
    return spread, "the inputs' weights summed" if fresh.shape[1] == 1 else "spread over the inputs"


def _last_layer_of_grey(fresh: Tensor, given: Tensor) -> tuple[Tensor, str]:
    """From or to one output: the mean over the channels of what comes out is what it was."""
    repeated = given.mean(dim=0, keepdim=True).expand_as(fresh)
    return repeated, "the mean of the outputs" if len(fresh) == 1 else "repeated for each output"


def _overlap(fresh: Tensor, given: Tensor, row_groups: int, column_groups: int) -> tuple[Tensor, str]:
    """Copies the common rows and columns; of new columns the weights are zero, new rows are fresh.

    Args:
        fresh, given: [rows, columns, ...] of outputs and inputs, or [rows].
        row_groups, column_groups: of equal size, each of which is kept from its beginning.
    """
    result = fresh.clone()
    rows, rows_before = _common(len(fresh), len(given), row_groups)
    changes = [_in_words("output", len(given), len(fresh), "fresh")]
    if fresh.ndim == 1:
        result[rows] = given[rows_before]
    else:
        columns, columns_before = _common(fresh.shape[1], given.shape[1], column_groups)
        kept = torch.zeros_like(fresh[rows])
        kept[:, columns] = given[rows_before][:, columns_before]
        result[rows] = kept
        changes.append(_in_words("input", given.shape[1], fresh.shape[1], "at zero"))
    return result, ", ".join(filter(None, changes))


def _common(size: int, before: int, groups: int) -> tuple[list[int], list[int]]:
    """Places that both sizes have, in the new and in the old numbering."""
    own, other = size // groups, before // groups
    places = [(group, i) for group in range(groups) for i in range(min(own, other))]
    return [group * own + i for group, i in places], [group * other + i for group, i in places]


def _in_words(what: str, before: int, now: int, start: str) -> str:
    if now > before:
        return f"{now - before} new {what}s {start}"
    return f"{before - now} {what}s cut off" if now < before else ""


def settings_of(pretrained: KLVAE | VQVAE) -> dict[str, object]:
    """What a model's config says of its latents and of its weights, and belongs to them wherever they go."""
    names = ("scaling_factor", "shift_factor", "latents_mean", "latents_std", "force_upcast")
    return {name: pretrained.config[name] for name in names if name in pretrained.config}
