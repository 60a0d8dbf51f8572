"""The autoencoder among the tensors of a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from latentae.models.checkpoints.names import to_diffusers_names
from latentae.models.checkpoints.recognise import describe_contents

# Both layouts have these, and little else has both.
_ENCODER = "encoder.conv_in.weight"
_DECODER = "decoder.conv_in.weight"
# Where autoencoders lie in whole checkpoints: LDM and Stable Diffusion, ComfyUI, trainers.
_PREFIXES = ("first_stage_model.", "vae.", "model.", "")

# What training keeps beside the autoencoder, and images do not depend on: losses with their discriminator and
# LPIPS, averaged weights, counters of a codebook trained by averages, LDM's colours of segmentation maps, and
# the normalisation of FLUX.2's latents.
_TRAINING = re.compile(
    r"(loss|model_ema|discriminator|perceptual_loss|lpips|bn)\..*"
    r"|quantize\.(embedding\.)?(cluster_size|embed_avg|ema_\w+)|quantize\.used|colorize"
)


def find_autoencoder(tensors: Mapping[str, Tensor], *, ema: bool = False) -> dict[str, Tensor]:
    """The autoencoder's tensors under diffusers' names, without the prefix they have in a whole checkpoint.

    Args:
        tensors: a checkpoint's, in latent diffusion's or in diffusers' layout.
        ema: take the averaged weights that LDM keeps as ``model_ema.*``.

    Raises:
        ValueError: there is no autoencoder, or half of one, or no averaged weights; the message says what the
            tensors look like.
    """
    prefix = _find_prefix(tensors)
    inside = {
        name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)
    }
    state = {name: tensor for name, tensor in inside.items() if not _TRAINING.fullmatch(name)}
    return to_diffusers_names(_averaged(state, inside) if ema else state)


def _find_prefix(tensors: Mapping[str, Tensor]) -> str:
    prefixes = {side: _prefixes(tensors, side) for side in (_ENCODER, _DECODER)}
    both = prefixes[_ENCODER] & prefixes[_DECODER]
    if not both:
        for side, found in prefixes.items():
            if found:
                word = side.split(".")[0]
                raise ValueError(f"holds the {word} of an autoencoder without its other half")
        raise ValueError(f"holds no autoencoder: it {describe_contents(tensors)}")
    known = [prefix for prefix in _PREFIXES if prefix in both]
    if not known and len(both) > 1:
        raise ValueError(f"holds several autoencoders, under {', '.join(sorted(both))}: save one by itself")
    return (known or [*both])[0]


def _prefixes(tensors: Mapping[str, Tensor], name: str) -> set[str]:
    found = {key.removesuffix(name) for key in tensors if key.endswith(name)}
    return {prefix for prefix in found if prefix == "" or prefix.endswith(".")}


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
