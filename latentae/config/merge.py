"""Laying one layer of a config over another: a file over its base, the command line over the file."""

from collections.abc import Mapping
from typing import Any

from latentae.config.architecture import without_architecture
from latentae.config.reflect import choice_of, fields, member_name, sections_at


def merge(lower: Mapping[str, Any], upper: Mapping[str, Any], path: tuple[str, ...] = ()) -> dict[str, Any]:
    """`lower` with the values of `upper` laid over it; neither is changed.

    Sections merge key by key; everything else, lists and null too, is replaced. Where `upper` chooses another
    type of a section (`model.quantizer.type: ema`), the keys that both types have keep the values of `lower`;
    the keys that only the old type has go with it, since that is what choosing another type asks for. Where
    `upper` names a pretrained model, what `lower` says of the architecture goes: that model has its own.
    """
    if path == ("model",) and upper.get("pretrained") is not None:
        lower = without_architecture(lower)
    merged = {key: value for key, value in lower.items() if key not in _left_behind(lower, upper, path)}
    for key, value in upper.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            merged[key] = merge(below, value, (*path, key))
        else:
            merged[key] = value
    return merged


def _left_behind(lower: Mapping[str, Any], upper: Mapping[str, Any], path: tuple[str, ...]) -> set[str]:
    sections = sections_at(path)
    choice = choice_of(sections)
    if choice is None or choice not in lower or choice not in upper:
        return set()
    members = {member_name(section): set(fields(section)) for section in sections}
    old, new = str(lower[choice]), str(upper[choice])
    return members[old] - members[new] if old in members and new in members else set()
