"""The autoencoder among the tensors of a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from torch import Tensor

from latentae.models.checkpoints.names import to_diffusers_names
from latentae.models.checkpoints.recognise import describe_contents, shorten

# Both layouts have these, and little else has both.
_ENCODER = "encoder.conv_in.weight"
_DECODER = "decoder.conv_in.weight"

# How an autoencoder is called in a whole checkpoint, the surest name first: LDM and Stable Diffusion, ComfyUI
# and trainers, trainers; "" is one that has no name.
_RANKS = {
    "first_stage_model": 0,
    **dict.fromkeys(("vae", "vqvae", "vqgan", "movq", "autoencoder", "ae", "tokenizer"), 1),
    "model": 2,
    "": 3,
}
_OTHER_RANK = 4
# Parts of names that say nothing of what it is: mappings of trainers, and kinds of weights.
_NEUTRAL = re.compile(r"state_dict|model_state_dict|params|generator|net|network|online_model")
_AVERAGES = re.compile(r"(.+_)?ema(_.+)?|averag\w+|shadow\w*")

# What training keeps beside the autoencoder, and images do not depend on: losses with their discriminator and
# LPIPS, averaged weights, the network that VA-VAE aligns latents with, counters of a codebook trained by
# averages, LDM's colours of segmentation maps, and the normalisation of FLUX.2's latents.
_TRAINING = re.compile(
    r"(\w*loss\w*|(\w+_)?ema(_\w+)?|disc\w*|perceptual\w*|lpips\w*|foundation_model|linear_proj|bn)\..*"
    r"|quantize\.(embedding\.)?(cluster_size|embed_avg|ema_\w+)|quantize\.used|colorize"
)
_FLATTENED = re.compile(r"(.*\.)?_?flat_param(_\d+)?")


def find_autoencoder(
    tensors: Mapping[str, Tensor], *, ema: bool = False, keep: Collection[str] = ()
) -> dict[str, Tensor]:
    """The autoencoder's tensors under diffusers' names, without the prefix they have in a whole checkpoint.

    Args:
        tensors: a checkpoint's, in latent diffusion's or in diffusers' layout.
        ema: take averaged weights: LDM's ``model_ema.*``, or those under a name such as ``ema_model``.
        keep: names that the model has. What else training needs alone is left out.

    Raises:
        ValueError: there is no autoencoder, or half of one, or no averaged weights; the message says what the
            tensors look like.
    """
    prefix = find_prefix(tensors, ema=ema)
    nested = [other for other in _complete(tensors) if other != prefix and other.startswith(prefix)]
    inside = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix) and not name.startswith(tuple(nested))
    }
    state = {
        name: tensor for name, tensor in inside.items() if name in keep or not is_for_training(name, tensor)
    }
    if ema and not is_average(prefix):
        state = _averaged(state, inside)
    return to_diffusers_names(state)


def is_for_training(name: str, tensor: Tensor) -> bool:
    """Whether a tensor of this name, without a prefix, is needed for training alone: also a counter."""
    return _TRAINING.fullmatch(name) is not None or (tensor.ndim == 0 and "." not in name)


def find_prefix(tensors: Mapping[str, Tensor], *, ema: bool = False) -> str:
    """What stands before the names of the autoencoder's tensors; arguments and errors as above."""
    both = _complete(tensors)
    if not both:
        raise ValueError(_what_there_is(tensors))
    averages = {prefix for prefix in both if is_average(prefix)}
    # Without plain weights the averages are all there is; LDM's own lie within the plain ones.
    chosen = (averages if ema else both - averages) or both
    best = min(map(_rank, chosen))
    candidates = sorted(prefix for prefix in chosen if _rank(prefix) == best)
    if len(candidates) > 1:
        names = ", ".join(shorten(prefix) for prefix in candidates[:4])
        raise ValueError(f"holds several autoencoders, under {names}: save one by itself")
    return candidates[0]


def _complete(tensors: Mapping[str, Tensor]) -> set[str]:
    """The prefixes under which there are both halves of an autoencoder."""
    return _prefixes(tensors, _ENCODER) & _prefixes(tensors, _DECODER)


def _prefixes(tensors: Mapping[str, Tensor], name: str) -> set[str]:
    found = {key.removesuffix(name) for key in tensors if key.endswith(name)}
    return {prefix for prefix in found if prefix == "" or prefix.endswith(".")}


def is_average(prefix: str) -> bool:
    """Whether the innermost part of a prefix that says so names averaged weights."""
    for part in reversed(prefix.split(".")):
        if part == "online_model":
            return False
        if _AVERAGES.fullmatch(part):
            return True
    return False


def _rank(prefix: str) -> int:
    """How surely the innermost part of a prefix that says something names the autoencoder of a checkpoint."""
    parts = [
        part
        for part in prefix.split(".")
        if part and not _NEUTRAL.fullmatch(part) and not _AVERAGES.fullmatch(part)
    ]
    return _RANKS.get(parts[-1] if parts else "", _OTHER_RANK)


def _averaged(state: Mapping[str, Tensor], inside: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state with LDM's averages in place of the weights; they are stored without the names' dots."""
    places = {name: f"model_ema.{name.replace('.', '')}" for name in state}
    missing = [name for name, place in places.items() if place not in inside]
    if missing:
        raise ValueError(
            f"variant is 'ema', but {len(missing)} of {len(state)} tensors have no average, such as "
            f"{missing[0]}. Leave it out to read the plain weights"
        )
    return {name: inside[place] for name, place in places.items()}


def _what_there_is(tensors: Mapping[str, Tensor]) -> str:
    """What a checkpoint without an autoencoder holds instead."""
    flattened = [name for name in tensors if _FLATTENED.fullmatch(name)]
    if flattened:
        return (
            f"holds {len(flattened)} flattened parameters of FSDP, such as {shorten(flattened[0])}, perhaps "
            "of one rank alone: save a full state dict (StateDictType.FULL_STATE_DICT)"
        )
    what = describe_contents(tensors)
    for side in (_ENCODER, _DECODER):
        if _prefixes(tensors, side):
            word = side.split(".")[0]
            return f"holds the {word} of an autoencoder without its other half: it {what}"
    return f"holds no autoencoder: it {what}"
