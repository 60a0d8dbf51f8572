"""A model from one file of weights."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import Module

from latentae.models.checkpoints.architecture import infer_architecture
from latentae.models.checkpoints.contents import find_autoencoder
from latentae.models.checkpoints.families import FAMILIES, find_normalisation
from latentae.models.checkpoints.reading import Checkpoint, read_checkpoint
from latentae.models.checkpoints.taesd import find_taesd, taesd_arguments
from latentae.models.kl import KLVAE
from latentae.models.tiny import TinyAutoencoder
from latentae.models.vq import VQGAN, VQVAE

_SAMPLE_SIZE = 256  # what LDM's and taming's autoencoders were trained on

Autoencoder = KLVAE | VQVAE | TinyAutoencoder
Model = TypeVar("Model", KLVAE, VQVAE, VQGAN, TinyAutoencoder)


def load_single_file(
    path: Path,
    *,
    family: str | None = None,
    torch_dtype: torch.dtype | None = None,
    ema: bool = False,
    **arguments: Any,
) -> Autoencoder:
    """The autoencoder in a safetensors file or a pickle, alone or in a whole checkpoint.

    Args:
        path: latent diffusion's, taming's, diffusers' or TAESD's layout of names.
        family: what the scale and shift are taken from, where the file does not say.
        torch_dtype: of the weights; None means float32, whatever the file's is.
        ema: take the averaged weights that LDM keeps beside the plain ones.
        arguments: constructor arguments in place of what was found or leaves no trace in tensors.

    Raises:
        ValueError: anything that keeps the file from being read as an autoencoder.
    """
    checkpoint = read_checkpoint(path)
    try:
        return _load(checkpoint, family, torch_dtype or torch.float32, ema, arguments)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _load(
    checkpoint: Checkpoint, family: str | None, dtype: torch.dtype, ema: bool, overrides: dict[str, Any]
) -> Autoencoder:
    tiny = find_taesd(checkpoint.tensors)
    if tiny is not None:
        if family is not None:
            raise ValueError(f"family is {family!r}, but this is TAESD, whose latents are scaled already")
        return _filled(TinyAutoencoder, {**taesd_arguments(tiny), **overrides}, tiny, dtype)
    state = find_autoencoder(checkpoint.tensors, ema=ema)
    architecture = infer_architecture(state, overrides.get("norm_num_groups"))
    normalisation = find_normalisation(
        architecture.latent_channels,
        factor=architecture.factor,
        metadata=checkpoint.metadata,
        tensors=checkpoint.tensors,
        family=family,
    )
    named = FAMILIES.get(normalisation.family or "")
    arguments = {
        **architecture.arguments,
        **normalisation.arguments(),
        "sample_size": named.sample_size if named else _SAMPLE_SIZE,
        **overrides,
    }
    return _filled(VQGAN if architecture.quantized else KLVAE, arguments, state, dtype)


def _filled(
    cls: type[Model], arguments: dict[str, Any], state: Mapping[str, Tensor], dtype: torch.dtype
) -> Model:
    """A model of these arguments with exactly these weights, in eval mode."""
    unknown = arguments.keys() - inspect.signature(cls.__init__).parameters.keys()
    if unknown:
        raise ValueError(
            f"{', '.join(sorted(unknown))}: no argument of {cls.__name__}, nor one for a single file"
        )
    model = cls(**arguments)
    Module.to(model, dtype)  # diffusers' own warns of modules to keep in float32, of which there are none
    own = model.state_dict()
    if missing := sorted(own.keys() - state.keys()):
        raise ValueError(f"lacks {len(missing)} tensors of a {cls.__name__}, such as {missing[0]}")
    if unexpected := sorted(state.keys() - own.keys()):
        raise ValueError(
            f"holds {len(unexpected)} tensors that a {cls.__name__} has no place for, such as {unexpected[0]}"
        )
    for name, tensor in own.items():
        if tensor.shape != state[name].shape:
            raise ValueError(
                f"holds {name} of shape {list(state[name].shape)}, but all else says {cls.__name__} with "
                f"{list(tensor.shape)}"
            )
    model.load_state_dict(state)
    return model.eval()
