"""Continuing from another model's weights: what fits is kept if numbers of channels or codes differ.

A layer with more outputs keeps its old ones and has fresh weights for the new ones. A layer with more inputs
keeps its weights for the old ones and has zeros for the new ones. So a model that gains latent channels, code
dimensions or image channels reconstructs at first what it did before. The zeros are multiplied by non-zero
inputs and learn in the first step; the fresh weights before them learn from the second step on. What there is
too much of is cut off at the end.

Grey is the mean of the colours. For one image channel, a first layer sums its weights and a last layer
averages them; from one image channel, they are spread over all. So a grey image is encoded as it was in
colour.

If the fourth of four channels is alpha, a grey or RGB model grows only colours as described; the weights of
alpha as an input start at zero, and as an output it starts opaque. So the model first reconstructs every
picture as it did before, without transparency.

Architectures are described and compared as a training config's ``model`` section.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latentae.models.decoder_weights import take_from_teacher
from latentae.models.decoders import DecoderShape
from latentae.models.flux2 import Flux2VAE
from latentae.models.kl import KLVAE
from latentae.models.tiny import TinyAutoencoder
from latentae.models.vq import VQVAE
from latentae.quantizers import implied_size

# Config keys whose values may differ between a model and its pretrained weights: tensors then differ in size.
_IMAGES = ("in_channels", "out_channels")
_CODES = ("num_codes", "code_dim")
QUANTIZER_STRUCTURE = ("type", *_CODES, "levels", "bits", "depth", "groups", "scale")
"""Keys of a quantizer, or of its members, that are part of the architecture. The others say how it learns."""
SAME_QUANTIZER = {"ema": "vector"}
"""Quantizer types with the tensors of another type: they only learn differently."""
# Quantizers whose codes would be chosen differently after gaining dimensions.
_FIXED_CODE_DIM = ("grouped", "simvq")

# Block types of a level without and with attention.
_BLOCKS = {
    "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("UpDecoderBlock2D", "AttnUpDecoderBlock2D"),
}
# The first layers of the two backbones, and the last one.
_FIRST_LAYERS = ("encoder.conv_in", "encoder.down.0")
_LAST_LAYER = "decoder.conv_out"
# Numbers of image channels, afterwards and before, when a model gains alpha.
_TO_RGBA = ((4, 3), (4, 1))
# Layers whose outputs (inputs) are a posterior's means followed by its log-variances.
_MOMENTS_OUT = ("encoder.conv_out", "quant_conv")
_MOMENTS_IN = ("quant_conv",)


# Architectures in the words of a config


def describe_architecture(model: nn.Module) -> dict[str, Any]:
    """Returns the config's ``model`` section that would build this model, as plain YAML values.

    Raises:
        ValueError: the model cannot be trained, or no config can describe it.
    """
    if not isinstance(model, KLVAE | VQVAE):
        taesd = " (TAESD)" if isinstance(model, TinyAutoencoder) else ""
        raise ValueError(
            f"it is a {type(model).__name__}{taesd}, another architecture, which is for evaluation only; "
            "name a KL-VAE or a VQ model"
        )
    config = model.config
    fixed = {"act_fn": "silu", "norm_type": "group", "use_post_quant_conv": config.get("use_quant_conv")}
    for name, value in fixed.items():
        if name in config and config[name] != value:
            raise ValueError(f"its {name} is {config[name]!r}, and only {value!r} can be trained")
    section: dict[str, Any] = {
        "class": type(model).__name__,
        "in_channels": config.in_channels,
        "out_channels": _none_if(config.out_channels, config.in_channels),
        "block_out_channels": list(config.block_out_channels),
        "layers_per_block": config.layers_per_block,
        "norm_num_groups": config.norm_num_groups,
        "latent_channels": config.latent_channels,
        "attention_levels": _attention_levels(config),
        "mid_block_attention": config.mid_block_add_attention,
    }
    if isinstance(model, Flux2VAE):
        widths = config.decoder_block_out_channels
        section["decoder_block_out_channels"] = None if widths is None else list(widths)
    if isinstance(model, KLVAE):
        return section | {"use_quant_conv": config.use_quant_conv}
    if type(model).__name__ == "VQVAE":
        section["backbone"] = config.backbone
    if config.backbone == "2017":  # it has neither normalisation nor attention
        section |= {"norm_num_groups": 1, "attention_levels": None}
    return section | {"quantizer": _describe_quantizer(config)}


def describe_decoder(model: nn.Module) -> dict[str, Any] | None:
    """Returns the config's ``decoder`` section that would build this model's; None for the usual decoder."""
    if not isinstance(model, KLVAE) or model.stock_objection is None:
        return None
    shape = DecoderShape.of(model.config)
    return {
        "widths": list(shape.widths),
        "layers_per_block": shape.layers_per_block,
        "upscale": shape.upscale,
    }


def _attention_levels(config: Any) -> list[bool] | None:
    """Returns which levels have self-attention, from the image's resolution downwards; None if none has."""
    levels: dict[str, list[bool]] = {}
    for name, (plain, attention) in _BLOCKS.items():
        unknown = set(config[name]) - {plain, attention}
        if unknown:
            raise ValueError(
                f"its {name} hold {min(unknown)}, and only {plain} and {attention} can be trained"
            )
        levels[name] = [block == attention for block in config[name]]
    down, up = levels.values()
    if down != up[::-1]:
        raise ValueError(
            f"its encoder has attention at other levels ({down}) than its decoder ({up[::-1]}), "
            "and only the same levels can be trained"
        )
    return down if any(down) else None


def _describe_quantizer(config: Any) -> dict[str, Any]:
    arguments = dict(config.quantizer or {"type": "vector"})
    if implied_size(**arguments) is not None:
        return arguments
    code_dim = _none_if(config.vq_embed_dim, config.latent_channels)
    if code_dim is not None:
        code_dim //= arguments.get("groups", 1)
    sizes = {"num_codes": config.num_vq_embeddings, "code_dim": code_dim}
    if "member" in arguments:
        return {**arguments, "member": {**arguments["member"], **sizes}}
    return {**arguments, **sizes}


def _none_if(value: int | None, default: int) -> int | None:
    """Returns None for the value that a config uses by default."""
    return None if value == default else value


@dataclass(frozen=True)
class Difference:
    """A key of the model section in which two models differ.

    Attributes:
        key: dotted.
        own, pretrained: the two values.
        is_fixed: whether the number must be the same, although keys of this name may usually differ.
    """

    key: str
    own: Any
    pretrained: Any
    is_fixed: bool = False

    def __str__(self) -> str:
        return f"`model.{self.key}` is {self.own}, and {self.pretrained} there"


def architecture_differences(own: nn.Module, pretrained: nn.Module) -> list[Difference]:
    """Returns the differences that prevent ``own`` from taking the tensors of ``pretrained``.

    Numbers of channels and of codes may differ, and so may how a quantizer is trained.
    """
    return [
        difference
        for difference in _differences(own, pretrained)
        if difference.key not in _IMAGES and (not _is_of_latents(difference.key) or difference.is_fixed)
    ]


def latent_differences(own: nn.Module, pretrained: nn.Module) -> list[Difference]:
    """Returns the differences in the number of latent channels, codes and code dimensions."""
    return [difference for difference in _differences(own, pretrained) if _is_of_latents(difference.key)]


def _is_of_latents(key: str) -> bool:
    return key == "latent_channels" or key.rpartition(".")[2] in _CODES


def _differences(own: nn.Module, pretrained: nn.Module) -> list[Difference]:
    ours, theirs = _comparable(own), _comparable(pretrained)
    types = {value for side in (ours, theirs) for key, value in side.items() if key.endswith(".type")}
    fixed = () if types.isdisjoint(_FIXED_CODE_DIM) else ("code_dim",)
    pairs = [
        Difference(key, ours.get(key), theirs.get(key), key.rpartition(".")[2] in fixed)
        for key in dict.fromkeys((*ours, *theirs))
    ]
    return [pair for pair in pairs if pair.own != pair.pretrained]


def _comparable(model: nn.Module) -> dict[str, Any]:
    """Returns the keys that determine the model's tensors, dotted, with defaults filled in."""
    flat = {"backbone": "stock", "quantizer.scale": 1.0, **_flatten(describe_architecture(model))}
    channels = flat["latent_channels"]
    defaults = {
        "out_channels": flat["in_channels"],
        "quantizer.code_dim": channels,
        "quantizer.member.code_dim": channels // flat.get("quantizer.groups", 1),
    }
    flat |= {key: value for key, value in defaults.items() if key in flat and flat[key] is None}
    # The class does not count: a VQGAN and a VQVAE are the same network.
    return {
        key: SAME_QUANTIZER.get(value, value) if key.endswith(".type") else value
        for key, value in flat.items()
        if key != "class"
        and (not key.startswith("quantizer.") or key.rpartition(".")[2] in QUANTIZER_STRUCTURE)
    }


def _flatten(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


# Weights


@dataclass(frozen=True)
class AdaptedTensor:
    """A tensor that had another size in the pretrained model.

    Attributes:
        name: in both models; "decoder" for the widths of a decoder of another shape.
        shape_before, shape: in the pretrained and in the new model.
        change: what was done, in words.
    """

    name: str
    shape_before: tuple[int, ...]
    shape: tuple[int, ...]
    change: str

    def __str__(self) -> str:
        return f"{self.name} {list(self.shape_before)} -> {list(self.shape)}: {self.change}"


@torch.no_grad()
def load_what_fits(
    model: KLVAE | VQVAE, pretrained: KLVAE | VQVAE, *, alpha: bool = False
) -> tuple[AdaptedTensor, ...]:
    """Copies the weights of ``pretrained`` into ``model``, on its device and in its dtype.

    The numbers of image channels, latent channels and codes may differ, as described at the top of this
    module, and so may the shape of a KL-VAE's decoder, as described in ``decoder_weights``.

    Args:
        model: freshly initialised; changed in place.
        pretrained: not changed.
        alpha: whether the fourth of the model's four image channels is alpha.

    Returns:
        the tensors whose size was changed, in the model's order.

    Raises:
        ValueError: a KL-VAE's weights for a VQ model or the reverse, or another architecture; then nothing is
            changed.
    """
    if isinstance(model, KLVAE) != isinstance(pretrained, KLVAE):
        raise ValueError(
            f"it holds a {type(pretrained).__name__}, and the config asks for a {type(model).__name__}"
        )
    if isinstance(model, Flux2VAE) != isinstance(pretrained, Flux2VAE):
        raise ValueError(
            f"it holds a {type(pretrained).__name__}, and the config asks for a {type(model).__name__}: set "
            f"model.class={type(pretrained).__name__}"
        )
    differences = architecture_differences(model, pretrained)
    if differences:
        raise ValueError(
            f"it has another architecture than the config asks for: {'; '.join(map(str, differences))}. "
            "Leave these keys out, or give them the pretrained model's values"
        )
    fresh, given = model.state_dict(), pretrained.state_dict()
    report: list[AdaptedTensor] = []
    if isinstance(model, KLVAE):
        shape, teacher = DecoderShape.of(model.config), DecoderShape.of(pretrained.config)
        given = take_from_teacher(fresh, given, shape, teacher, model.config.norm_num_groups)
        report += [] if shape == teacher else [_of_decoder(shape, teacher)]
    if strange := sorted(fresh.keys() ^ given.keys()):
        raise ValueError(
            f"it has another architecture than the config asks for: {len(strange)} tensors are in one of "
            f"them only, such as {strange[0]}"
        )
    state = {}
    for name, value in fresh.items():
        state[name] = given[name]
        if value.shape != given[name].shape:
            tensors = (value.float().cpu(), given[name].float().cpu())
            state[name], change = _adapt(model, name, *tensors, alpha=alpha)
            report.append(AdaptedTensor(name, tuple(given[name].shape), tuple(value.shape), change))
    model.load_state_dict(state)
    return tuple(report)


def _of_decoder(shape: DecoderShape, teacher: DecoderShape) -> AdaptedTensor:
    changes = ["the first channels of every normalisation group are kept"] * (shape.widths != teacher.widths)
    for name in ("layers_per_block", "upscale"):
        own, before = getattr(shape, name), getattr(teacher, name)
        changes += [f"{name} {before} -> {own}"] * (own != before)
    return AdaptedTensor("decoder", teacher.widths, shape.widths, ", ".join(changes))


def latent_settings(pretrained: KLVAE | VQVAE) -> dict[str, object]:
    """Returns the config keys that belong to a model's latents and weights, wherever these are used."""
    names = (
        *("scaling_factor", "shift_factor", "latents_mean", "latents_std", "force_upcast"),
        *("batch_norm_eps", "batch_norm_momentum"),
    )
    return {name: pretrained.config[name] for name in names if name in pretrained.config}


def _adapt(
    model: nn.Module, name: str, fresh: Tensor, given: Tensor, *, alpha: bool = False
) -> tuple[Tensor, str]:
    """Returns a tensor of the size of ``fresh`` with what fits of ``given``, and what was done."""
    layer, _, part = name.rpartition(".")
    transposed = isinstance(model.get_submodule(layer), nn.ConvTranspose2d) and part == "weight"
    if transposed:  # then the inputs come first
        fresh, given = fresh.transpose(0, 1), given.transpose(0, 1)
    pixels = getattr(model, "upscale", 1) ** 2  # that the last layer computes side by side
    dim, at_once = (1, 1) if layer in _FIRST_LAYERS else (0, pixels)
    channels = (fresh.shape[dim] // at_once, given.shape[dim] // at_once)
    if alpha and layer in (*_FIRST_LAYERS, _LAST_LAYER) and channels in _TO_RGBA:
        result, change = _with_alpha(layer, part, given, at_once)
    elif layer == _LAST_LAYER and pixels in (len(fresh), len(given)):
        # From or to one output: the mean over the output channels stays the same.
        mean = given.unflatten(0, (-1, pixels)).mean(dim=0)
        result = torch.cat([mean] * (len(fresh) // pixels))
        change = "the mean of the outputs" if len(fresh) == pixels else "repeated for each output"
    elif layer in _FIRST_LAYERS and 1 in (fresh.shape[1], given.shape[1]):
        # From or to one input: the mean over the input channels has the same effect.
        result = given.sum(dim=1, keepdim=True).expand_as(fresh) / fresh.shape[1]
        change = "the inputs' weights summed" if fresh.shape[1] == 1 else "spread over the inputs"
    else:
        is_kl = isinstance(model, KLVAE)
        rows = 2 if is_kl and layer in _MOMENTS_OUT else 1
        columns = 2 if is_kl and layer in _MOMENTS_IN else 1
        result, change = _overlap(fresh, given, rows, columns)
    return (result.transpose(0, 1) if transposed else result).contiguous(), change


def _with_alpha(layer: str, part: str, given: Tensor, pixels: int) -> tuple[Tensor, str]:
    """Returns the weights or biases of a first or last layer, whose three colours alpha joins.

    Args:
        pixels: outputs per channel of the last layer, which an upscaling decoder computes side by side.
    """
    if layer in _FIRST_LAYERS:
        colours = given if given.shape[1] == 3 else given.expand(-1, 3, -1, -1) / 3
        return torch.cat([colours, torch.zeros_like(colours[:, :1])], dim=1), "alpha's inputs at zero"
    colours = given if len(given) == 3 * pixels else torch.cat([given] * 3)
    opaque = 1.0 if part == "bias" else 0.0  # so that the output is 1 everywhere
    return torch.cat([colours, torch.full_like(colours[:pixels], opaque)]), "alpha starts opaque"


def _overlap(fresh: Tensor, given: Tensor, row_groups: int, column_groups: int) -> tuple[Tensor, str]:
    """Copies the common rows and columns; new columns have zero weights, new rows are fresh.

    Args:
        fresh, given: [rows, columns, ...] of outputs and inputs, or [rows].
        row_groups, column_groups: number of equal groups; the beginning of each group is kept.
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
    """Returns the indices that both sizes have, in the new and in the old numbering."""
    own, other = size // groups, before // groups
    places = [(group, i) for group in range(groups) for i in range(min(own, other))]
    return [group * own + i for group, i in places], [group * other + i for group, i in places]


def _in_words(what: str, before: int, now: int, start: str) -> str:
    if now > before:
        return f"{now - before} new {what}s {start}"
    return f"{before - now} {what}s cut off" if now < before else ""
