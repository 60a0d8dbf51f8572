"""Which keys of the model section describe its tensors, so that a pretrained model brings them along."""

from collections.abc import Mapping
from typing import Any

_NOT_IN_TENSORS = ("class", "pretrained")
# Of a quantizer: the rest is how it learns.
_QUANTIZER_KEYS = ("num_codes", "code_dim", "levels", "bits", "depth", "groups", "scale", "member")
_SAME_TENSORS = ({"vector", "ema"},)


class Inherited(dict[str, Any]):
    """A quantizer section from below the layer that names the pretrained model: it holds if it suits that."""


def is_architecture(key: str) -> bool:
    """Whether a key of the model section, such as `quantizer.num_codes`, describes the model's tensors."""
    section, _, name = key.rpartition(".")
    return name in _QUANTIZER_KEYS if section == "quantizer" else key not in (*_NOT_IN_TENSORS, "quantizer")


def without_architecture(model: Mapping[str, Any]) -> dict[str, Any]:
    """The model section without what a pretrained model says of itself; how a quantizer learns stays."""
    kept = {key: value for key, value in model.items() if not is_architecture(key)}
    quantizer = kept.get("quantizer")
    if isinstance(quantizer, Mapping):
        kept["quantizer"] = Inherited(
            {key: value for key, value in quantizer.items() if not is_architecture(f"quantizer.{key}")}
        )
    return kept


def suits(inherited: Any, described: Any) -> bool:
    """Whether how the one type of quantizer learns may be said of the other."""
    return inherited == described or any({inherited, described} <= types for types in _SAME_TENSORS)
