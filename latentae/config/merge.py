"""Laying one layer of a config over another: a file over its base, the command line over the file."""

from collections.abc import Mapping
from typing import Any

from latentae.config.describe import choice_of, fields, member_name, sections_at


def merge(lower: Mapping[str, Any], upper: Mapping[str, Any], path: tuple[str, ...] = ()) -> dict[str, Any]:
    """Returns `lower` with the values of `upper` merged over it; neither is changed.

    Sections merge key by key; everything else, including lists and null, is replaced. Where `upper` chooses
    another type of a section (`model.quantizer.type: ema`), the keys that both types have keep the values of
    `lower`, and the keys that only the old type has are dropped. Where `upper` names a pretrained model, the
    architecture keys of `lower` are dropped, because that model has its own.
    """
    if path == ("model",) and upper.get("pretrained") is not None:
        lower = without_architecture(lower)
    merged = {key: value for key, value in lower.items() if key not in _dropped_keys(lower, upper, path)}
    for key, value in upper.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            merged[key] = merge(below, value, (*path, key))
        else:
            merged[key] = value
    return merged


def _dropped_keys(lower: Mapping[str, Any], upper: Mapping[str, Any], path: tuple[str, ...]) -> set[str]:
    """Returns the keys of `lower` that only the type it chooses has, where `upper` chooses another."""
    sections = sections_at(path)
    choice = choice_of(sections)
    if choice is None or choice not in lower or choice not in upper:
        return set()
    members = {member_name(section): set(fields(section)) for section in sections}
    old, new = str(lower[choice]), str(upper[choice])
    return members[old] - members[new] if old in members and new in members else set()


# Keys of the model section that say nothing about its tensors.
_NOT_IN_TENSORS = ("class", "pretrained")
# The quantizer's architecture keys. Its other keys are about how it learns.
_QUANTIZER_KEYS = ("num_codes", "code_dim", "levels", "bits", "depth", "groups", "scale", "member")
# Quantizer types with the same tensors, so that either can continue the other.
_SAME_TENSORS = ({"vector", "ema"},)


class Inherited(dict[str, Any]):
    """A quantizer section from a layer below the one that names the pretrained model.

    It is used only if its type suits that model's quantizer.
    """


def is_architecture(key: str) -> bool:
    """Whether a key of the model section, such as `quantizer.num_codes`, is part of the architecture."""
    section, _, name = key.rpartition(".")
    return name in _QUANTIZER_KEYS if section == "quantizer" else key not in (*_NOT_IN_TENSORS, "quantizer")


def without_architecture(model: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the model section without its architecture keys; keys of how a quantizer learns stay."""
    kept = {key: value for key, value in model.items() if not is_architecture(key)}
    quantizer = kept.get("quantizer")
    if isinstance(quantizer, Mapping):
        kept["quantizer"] = Inherited(
            {key: value for key, value in quantizer.items() if not is_architecture(f"quantizer.{key}")}
        )
    return kept


def suits(inherited: Any, described: Any) -> bool:
    """Whether learning settings of one quantizer type apply to a model with the other type."""
    return inherited == described or any({inherited, described} <= types for types in _SAME_TENSORS)
