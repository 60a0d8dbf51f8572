"""A model from one file of weights."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from latentae.models.checkpoints.architecture import infer_architecture, is_ldm_layout
from latentae.models.checkpoints.classes import CLASSES, Autoencoder, Model, constructor_arguments
from latentae.models.checkpoints.contents import find_autoencoder, find_prefix, is_for_training
from latentae.models.checkpoints.families import FAMILIES, find_normalisation
from latentae.models.checkpoints.folders import CONFIG, read_config
from latentae.models.checkpoints.metadata import config_in
from latentae.models.checkpoints.pairs import find_other_half
from latentae.models.checkpoints.reading import Checkpoint, read_checkpoint
from latentae.models.checkpoints.recognise import shorten
from latentae.models.checkpoints.taesd import DECODER, ENCODER, find_halves, taesd_arguments
from latentae.models.checkpoints.tensors import adapter_remedy, check_floating
from latentae.models.kl import KLVAE
from latentae.models.tiny import TinyAutoencoder
from latentae.models.vq import VQGAN

logger = logging.getLogger(__name__)

_GUESSED = (
    "%s does not tell how many groups the model's normalisation has, and no published model has widths %s: "
    "taking the usual 32. If the model has another number, its pixels come out wrong: name the number by "
    "norm_num_groups, put the model's config.json beside the file, or write a folder that tells it with "
    "`latentae export FILE --norm-num-groups N --format diffusers --out FOLDER`."
)
_SAMPLE_SIZE = 256  # what LDM's and taming's autoencoders were trained on


def load_single_file(
    path: Path,
    *,
    family: str | None = None,
    torch_dtype: torch.dtype | None = None,
    ema: bool = False,
    **arguments: Any,
) -> Autoencoder:
    """The autoencoder in a safetensors file or a pickle, alone or in a whole checkpoint.

    What its tensors do not show is read in the file's metadata, where our own files have it, or else in a
    ``config.json`` beside it, if that describes this model.

    Args:
        path: latent diffusion's, taming's, diffusers' or TAESD's layout of names. Of TAESD in two files,
            either: the other one's name has "encoder" in place of "decoder", or the reverse.
        family: what the scale and shift are taken from, where the file does not say.
        torch_dtype: of the weights; None means float32, whatever the file's is.
        ema: take the averaged weights that trainers keep beside the plain ones.
        arguments: constructor arguments in place of what was found or leaves no trace in tensors.

    Raises:
        ValueError: anything that keeps the file from being read as an autoencoder.
    """
    try:
        return _load(path, family, torch_dtype or torch.float32, ema, arguments)
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from error


def find_configs(path: Path, metadata: Mapping[str, str]) -> list[tuple[str, dict[str, Any]]]:
    """The configs that may describe the model in a file, the likeliest first, and where each is.

    Args:
        path: of the file, beside which there may be a ``config.json``; one that is no JSON is left alone.
        metadata: of the file, where our own files have theirs.

    Raises:
        ValueError: the file's own is no JSON object.
    """
    own = config_in(metadata)
    found = [] if own is None else [("the config in its metadata", own)]
    if (path.parent / CONFIG).is_file():
        try:
            found.append((f"{CONFIG} beside it", read_config(path.parent)))
        except ValueError as error:  # it may have nothing to do with the file
            logger.warning("%s, so that it does not tell what %s is", error, path.name)
    return [(place, config) for place, config in found if config.get("_class_name") in CLASSES]


def _load(
    path: Path, family: str | None, dtype: torch.dtype, ema: bool, overrides: dict[str, Any]
) -> Autoencoder:
    checkpoint = read_checkpoint(path)
    tiny = _find_taesd(path, checkpoint)
    if tiny is not None and family is not None:
        raise ValueError(f"family is {family!r}, but this is TAESD, whose latents are scaled already")
    if tiny is not None and ema:
        raise ValueError("variant is 'ema', but this is TAESD, of which there are no averages")

    # What says more than tensors, if it is of this model.
    for place, config in find_configs(path, checkpoint.metadata):
        cls = CLASSES[config["_class_name"]]
        try:
            model = _build(cls, constructor_arguments(config), overrides)
        except ValueError as error:
            raise ValueError(f"{place} cannot be used: {error}") from error
        state = _state_of(model, checkpoint, ema) if tiny is None else tiny.state
        objection = _objection(model, state)
        if objection is None:
            _normalise(model, checkpoint, family, overrides)
            return _filled(model, state, dtype)
        logger.warning("%s is not described by %s, by which it %s.", path, place, objection)

    if tiny is not None:
        model, state = _build(TinyAutoencoder, tiny.arguments, overrides), tiny.state
    else:
        model, state = _shown_by_tensors(path, checkpoint, family, ema, overrides)
    objection = _objection(model, state)
    if objection is not None:
        raise ValueError(objection)
    return _filled(model, state, dtype)


@dataclass
class _Taesd:
    """Both halves of TAESD, under diffusers' names, and the arguments of a TinyAutoencoder for them."""

    state: dict[str, Tensor]
    arguments: dict[str, Any]


def _find_taesd(path: Path, checkpoint: Checkpoint) -> _Taesd | None:
    """TAESD in a checkpoint, whose other half may lie in a second file; None where it is something else."""
    halves = find_halves(checkpoint.tensors)
    if not halves:
        return None
    if len(halves) == 1:
        (side,) = halves
        other = find_other_half(path, side)
        halves = {**find_halves(read_checkpoint(other).tensors), **halves}
        if len(halves) == 1:
            raise ValueError(f"holds the {side} of a TAESD, and {other.name} not the other half")
    encoder, decoder = halves[ENCODER], halves[DECODER]
    return _Taesd({**encoder.state(), **decoder.state()}, taesd_arguments(encoder, decoder))


def _normalise(
    model: Autoencoder, checkpoint: Checkpoint, family: str | None, overrides: Mapping[str, Any]
) -> None:
    """Takes the scale from the family, or where the model's config does not know it, from the metadata."""
    if family is None and model.config.scaling_factor is not None:
        return
    found = find_normalisation(
        model.latents_channels, factor=0, metadata=checkpoint.metadata, tensors={}, family=family
    )
    model.change_config(**{k: v for k, v in found.arguments().items() if k not in overrides})


def _shown_by_tensors(
    path: Path, checkpoint: Checkpoint, family: str | None, ema: bool, overrides: Mapping[str, Any]
) -> tuple[Autoencoder, dict[str, Tensor]]:
    """A model of the architecture that tensors show, with the scale that lies around it, and its tensors."""
    prefix = find_prefix(checkpoint.tensors, ema=ema)
    state = find_autoencoder(checkpoint.tensors, ema=ema)
    is_ldm = is_ldm_layout(checkpoint.tensors)
    architecture = infer_architecture(state, overrides.get("norm_num_groups"), is_ldm=is_ldm)
    if architecture.guessed_groups:
        logger.warning(_GUESSED, path, list(architecture.arguments["block_out_channels"]))
    normalisation = find_normalisation(
        architecture.latent_channels,
        factor=architecture.factor,
        metadata=checkpoint.metadata,
        tensors=checkpoint.mapping_of(prefix),
        family=family,
    )
    named = FAMILIES.get(normalisation.family or "")
    arguments = {
        **architecture.arguments,
        **normalisation.arguments(),
        "sample_size": named.sample_size if named else _SAMPLE_SIZE,
    }
    return _build(VQGAN if architecture.quantized else KLVAE, arguments, overrides), state


def _build(cls: type[Model], arguments: Mapping[str, Any], overrides: Mapping[str, Any]) -> Model:
    unknown = overrides.keys() - inspect.signature(cls.__init__).parameters.keys()
    if unknown:
        raise ValueError(
            f"{', '.join(sorted(unknown))}: no argument of {cls.__name__}, nor one for a single file"
        )
    return cls(**{**arguments, **overrides})


def _state_of(model: Module, checkpoint: Checkpoint, ema: bool) -> dict[str, Tensor]:
    """A model's tensors in a file: under its own names, or wherever an autoencoder is."""
    own = model.state_dict().keys()
    if not ema and own <= checkpoint.tensors.keys():
        return {
            name: tensor
            for name, tensor in checkpoint.tensors.items()
            if name in own or not is_for_training(name, tensor)
        }
    return find_autoencoder(checkpoint.tensors, ema=ema, keep=own)


def _objection(model: Module, state: Mapping[str, Tensor]) -> str | None:
    """Why these are not the tensors of a model, as what a file does; None where they are."""
    own, cls = model.state_dict(), type(model).__name__
    if missing := sorted(own.keys() - state.keys()):
        return f"lacks {len(missing)} tensors of a {cls}, such as {missing[0]}{adapter_remedy(state)}"
    if unexpected := sorted(state.keys() - own.keys()):
        return (
            f"holds {len(unexpected)} tensors that a {cls} has no place for, such as {shorten(unexpected[0])}"
        )
    for name, tensor in own.items():
        if tensor.shape != state[name].shape:
            return (
                f"holds {name} of shape {list(state[name].shape)}, but all else says {cls} with "
                f"{list(tensor.shape)}"
            )
    return None


def _filled(model: Autoencoder, state: Mapping[str, Tensor], dtype: torch.dtype) -> Autoencoder:
    """The model with these weights, in eval mode."""
    check_floating(state, model.state_dict())
    Module.to(model, dtype)  # diffusers' own warns of modules to keep in float32, of which there are none
    model.load_state_dict(state)
    return model.eval()
