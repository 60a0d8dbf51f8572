"""The model section of a run that starts from a pretrained model: filled in from what that model is."""

from collections.abc import Callable, Mapping
from typing import Any

from latentae.config.describe import fields, member_name, sections_at
from latentae.config.files import FAMILIES, Family
from latentae.config.merge import Inherited, is_architecture, merge, suits
from latentae.config.yaml_text import ConfigError

_TINY = "TinyAutoencoder"

Describe = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Returns the model section of the pretrained model, given a run's plain values with `model.pretrained` set.
It also has a key `decoder`, with that section, if the model's decoder is not the mirror of its encoder.
Raises ValueError if the model cannot be read."""


def fill_in(data: Mapping[str, Any], describe: Describe) -> dict[str, Any]:
    """Returns `data` with the missing keys of its model section filled in from its pretrained model, if any.

    Existing keys stay. If none is missing, as in a run's own config.yaml, `describe` is not called.

    Args:
        data: a run's plain values, not yet validated.
        describe: called at most once.

    Raises:
        ConfigError: the pretrained model cannot be used, or is of another family.
    """
    model = data.get("model")
    place = model.get("pretrained") if isinstance(model, Mapping) else None
    if not isinstance(model, Mapping) or not isinstance(place, str) or not place or not _lacks(model):
        return dict(data)
    try:
        described = dict(describe(data))
    except ValueError as error:
        raise ConfigError(f"`model.pretrained` is {place}, which cannot be used: {error}") from error
    _check_family(place, model.get("class"), described["class"])
    own = {key: value for key, value in model.items() if key != "pretrained"}
    quantizer, theirs = own.get("quantizer"), described.get("quantizer", {})
    if isinstance(quantizer, Inherited) and not suits(quantizer.get("type"), theirs.get("type")):
        del own["quantizer"]
    decoder, chosen = described.pop("decoder", None), data.get("decoder", {})
    # The widths of a Flux2VAE's decoder have two names. What one of them chooses replaces both.
    if isinstance(chosen, Mapping) and chosen.get("widths") is not None:
        described.pop("decoder_block_out_channels", None)
    if isinstance(decoder, Mapping) and isinstance(chosen, Mapping):
        if own.get("decoder_block_out_channels") is not None:
            decoder = {**decoder, "widths": None}
        data = {**data, "decoder": merge(decoder, chosen, ("decoder",))}
    return {**data, "model": {**merge(described, own, ("model",)), "pretrained": place}}


def _lacks(model: Mapping[str, Any]) -> bool:
    """Whether an architecture key is missing."""
    chosen = [section for section in sections_at(("model",)) if member_name(section) == model.get("class")]
    if not chosen:
        return "class" not in model
    keys = fields(chosen[0])
    if any(is_architecture(key) and key not in model for key in keys):
        return True
    return "quantizer" in keys and _lacks_in_quantizer(model.get("quantizer"))


def _lacks_in_quantizer(quantizer: Any) -> bool:
    if not isinstance(quantizer, Mapping) or "type" not in quantizer:
        return True
    for section in sections_at(("model", "quantizer")):
        if member_name(section) == quantizer["type"]:
            return any(
                is_architecture(f"quantizer.{key}") and key not in quantizer for key in fields(section)
            )
    return False


def _check_family(place: str, chosen: Any, found: str) -> None:
    """Raises ConfigError if the run's model and the pretrained one are of different families."""
    if chosen is not None and chosen != found and _TINY in (chosen, found):
        raise ConfigError(
            f"`model.class` is {chosen}, but `model.pretrained` ({place}) holds a {found}, another "
            f"architecture; use model.class={found}, or name another model there"
        )
    families = {name: family for family in FAMILIES.values() for name in family.classes}
    if chosen in families and _is_kl(families[chosen]) != _is_kl(families[found]):
        scripts = [family.script for family in FAMILIES.values() if _is_kl(family) == _is_kl(families[found])]
        raise ConfigError(
            f"`model.class` is {chosen}, but `model.pretrained` ({place}) holds a {found}; name another "
            f"model there, or use {' or '.join(scripts)}"
        )


def _is_kl(family: Family) -> bool:
    return "KLVAE" in family.classes
