"""A model's architecture in the words of a training config's model section."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from latentae.models.kl import KLVAE
from latentae.models.vq import VQVAE
from latentae.quantizers import own_size

_LEVELS = {
    "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("UpDecoderBlock2D", "AttnUpDecoderBlock2D"),
}

# What may differ between a model and the weights it takes up: then tensors are of another size.
_IMAGES = ("in_channels", "out_channels")
_CODES = ("num_codes", "code_dim")
# What of a quantizer, or of its members, is more than how it learns.
_STRUCTURE = ("type", *_CODES, "levels", "bits", "depth", "groups", "scale")
# Quantizers whose codes, given more dimensions, would not be chosen as before.
_OF_FIXED_LENGTH = ("grouped", "simvq")


def describe_architecture(model: nn.Module) -> dict[str, Any]:
    """The keys of a config's ``model`` section that would build this model, as plain YAML values.

    Raises:
        ValueError: a model that cannot be trained, or one that a config has no words for.
    """
    if not isinstance(model, KLVAE | VQVAE):
        raise ValueError(
            f"it is a {type(model).__name__} (TAESD), another architecture, which is for evaluation only; "
            "name a KL-VAE or a VQ model"
        )
    config = model.config
    section: dict[str, Any] = {
        "class": type(model).__name__,
        "in_channels": config.in_channels,
        "out_channels": _unless(config.out_channels, config.in_channels),
        "block_out_channels": list(config.block_out_channels),
        "layers_per_block": config.layers_per_block,
        "norm_num_groups": config.norm_num_groups,
        "latent_channels": config.latent_channels,
        "attention_levels": _attention_levels(config),
        "mid_block_attention": config.mid_block_add_attention,
    }
    _check_words(config)
    if isinstance(model, KLVAE):
        return section | {"use_quant_conv": config.use_quant_conv}
    if type(model).__name__ == "VQVAE":
        section["backbone"] = config.backbone
    if config.backbone == "2017":  # it has neither norms nor attention
        section |= {"norm_num_groups": 1, "attention_levels": None}
    return section | {"quantizer": _describe_quantizer(config)}


def _describe_quantizer(config: Any) -> dict[str, Any]:
    arguments = dict(config.quantizer or {"type": "vector"})
    if own_size(**arguments) is not None:
        return arguments
    code_dim = _unless(config.vq_embed_dim, config.latent_channels)
    if code_dim is not None:
        code_dim //= arguments.get("groups", 1)
    sizes = {"num_codes": config.num_vq_embeddings, "code_dim": code_dim}
    if "member" in arguments:
        return {**arguments, "member": {**arguments["member"], **sizes}}
    return {**arguments, **sizes}


@dataclass(frozen=True)
class Difference:
    """A key of the model section in which two models differ, with the value of each.

    Attributes:
        key: dotted.
        own, pretrained: the values.
        is_fixed: whether the number cannot change, although others of its kind can.
    """

    key: str
    own: Any
    pretrained: Any
    is_fixed: bool = False

    def __str__(self) -> str:
        return f"`model.{self.key}` is {self.own}, and {self.pretrained} there"


def architecture_differences(own: nn.Module, pretrained: nn.Module) -> list[Difference]:
    """What keeps ``own`` from taking up the tensors of ``pretrained``.

    Numbers of channels and of codes are no such difference, nor is how a quantizer is trained.
    """
    return [
        difference
        for difference in _differences(own, pretrained)
        if difference.key not in _IMAGES and (not _is_of_latents(difference.key) or difference.is_fixed)
    ]


def latent_differences(own: nn.Module, pretrained: nn.Module) -> list[Difference]:
    """What makes the latents, or the codes, of the two models other numbers of numbers."""
    return [difference for difference in _differences(own, pretrained) if _is_of_latents(difference.key)]


def _is_of_latents(key: str) -> bool:
    return key == "latent_channels" or key.rpartition(".")[2] in _CODES


def _differences(own: nn.Module, pretrained: nn.Module) -> list[Difference]:
    ours, theirs = _comparable(own), _comparable(pretrained)
    types = {value for side in (ours, theirs) for key, value in side.items() if key.endswith(".type")}
    fixed = () if types.isdisjoint(_OF_FIXED_LENGTH) else ("code_dim",)
    pairs = [
        Difference(key, ours.get(key), theirs.get(key), key.rpartition(".")[2] in fixed)
        for key in dict.fromkeys((*ours, *theirs))
    ]
    return [pair for pair in pairs if pair.own != pair.pretrained]


def _comparable(model: nn.Module) -> dict[str, Any]:
    """What a model's tensors mean, by dotted key, with nothing left to a default."""
    flat = {"backbone": "stock", "quantizer.scale": 1.0, **_flat(describe_architecture(model))}
    channels = flat["latent_channels"]
    defaults = {
        "out_channels": flat["in_channels"],
        "quantizer.code_dim": channels,
        "quantizer.member.code_dim": channels // flat.get("quantizer.groups", 1),
    }
    flat |= {key: value for key, value in defaults.items() if key in flat and flat[key] is None}
    # A VQGAN and a VQVAE are one network, and so are codes learned by gradient and by averages.
    same = {"ema": "vector"}
    return {
        key: same.get(value, value) if key.endswith(".type") else value
        for key, value in flat.items()
        if key != "class" and (not key.startswith("quantizer.") or key.rpartition(".")[2] in _STRUCTURE)
    }


def _check_words(config: Any) -> None:
    """Raises ValueError for what our configs cannot say."""
    expected = {
        "act_fn": "silu",
        "norm_type": "group",
        "use_post_quant_conv": config.get("use_quant_conv"),
    }
    for name, value in expected.items():
        if name in config and config[name] != value:
            raise ValueError(f"its {name} is {config[name]!r}, and only {value!r} can be trained")


def _attention_levels(config: Any) -> list[bool] | None:
    """Which levels, from the image's resolution downwards, have self-attention; None where none has."""
    switches: dict[str, list[bool]] = {}
    for name, (plain, attention) in _LEVELS.items():
        unknown = set(config[name]) - {plain, attention}
        if unknown:
            raise ValueError(
                f"its {name} hold {min(unknown)}, and only {plain} and {attention} can be trained"
            )
        switches[name] = [block == attention for block in config[name]]
    down, up = switches.values()
    if down != up[::-1]:
        raise ValueError(
            f"its encoder has attention at other levels ({down}) than its decoder ({up[::-1]}), "
            "and only the same levels can be trained"
        )
    return down if any(down) else None


def _unless(value: int | None, default: int) -> int | None:
    """None where the value is what a config takes by itself."""
    return None if value == default else value


def _flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
