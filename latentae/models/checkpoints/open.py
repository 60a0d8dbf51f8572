"""Opens a model: a folder with a config, a repository on the hub, or a single file of weights."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import Module

from latentae.files import first_line
from latentae.models import foreign
from latentae.models.checkpoints.architecture import infer_architecture
from latentae.models.checkpoints.configs import (
    CONFIG,
    PIPELINE_PARTS,
    check_weights,
    config_in,
    read_config,
    stock_meaning,
)
from latentae.models.checkpoints.families import FAMILIES, Normalisation, check_family, find_normalisation
from latentae.models.checkpoints.layouts import (
    FLUX2_STATISTICS,
    adapter_remedy,
    check_flux2,
    find_autoencoder,
    find_prefix,
    is_for_training,
    is_ldm_layout,
    shorten,
)
from latentae.models.checkpoints.reading import Checkpoint, check_floating, read_checkpoint
from latentae.models.checkpoints.taesd import find_taesd
from latentae.models.flux2 import Flux2VAE
from latentae.models.foreign import ForeignAutoencoder
from latentae.models.kl import KLVAE
from latentae.models.tiny import TinyAutoencoder
from latentae.models.vq import VQGAN, VQVAE

logger = logging.getLogger(__name__)

Autoencoder = KLVAE | VQVAE | TinyAutoencoder
"""The classes whose models can be trained, measured and saved."""
Opened = Autoencoder | ForeignAutoencoder
"""What can be opened: the latter for evaluation only."""
Model = TypeVar("Model", KLVAE, Flux2VAE, VQVAE, VQGAN, TinyAutoencoder)

# By the class that a config names. A plain VQModel does not say how it was trained; VQVAE and VQGAN differ in
# name only.
CLASSES: dict[str, type[Autoencoder]] = {
    "KLVAE": KLVAE,
    "AutoencoderKL": KLVAE,
    "Flux2VAE": Flux2VAE,
    "AutoencoderKLFlux2": Flux2VAE,
    "VQVAE": VQVAE,
    "VQGAN": VQGAN,
    "VQModel": VQGAN,
    "AutoencoderTiny": TinyAutoencoder,
    "TinyAutoencoder": TinyAutoencoder,
}

# What ``from_pretrained`` takes besides the config: what to fetch, and where to place the weights.
_FETCHING = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")
_PLACING = ("device_map", "disable_mmap", "low_cpu_mem_usage", "max_memory", "offload_folder")
_OPTIONS = (*_FETCHING, *_PLACING, "dtype", "subfolder", "torch_dtype", "use_safetensors", "variant")

# What constructors of torch and diffusers raise for values that they do not check, such as 0 groups.
_BAD_VALUE_ERRORS = (ArithmeticError, AttributeError, LookupError, TypeError)

_GUESSED = (
    "%s does not tell how many groups the model's normalisation has, and no published model has widths %s. "
    "The usual 32 is assumed. With another number the pixels are wrong: pass norm_num_groups, put the "
    "model's config.json beside the file, or write a folder that records it with `latentae export FILE "
    "--norm-num-groups N --format diffusers --out FOLDER`."
)
_NO_FAMILY = (
    "family is {!r}, but this is a FLUX.2 VAE, whose own tensors hold the statistics of its latents: leave "
    "family out"
)
_SAMPLE_SIZE = 256  # LDM's and taming's autoencoders were trained on images of this size


# --- folders and repositories ---


def load_pretrained(
    place: str, config: Mapping[str, Any], *, family: str | None = None, **arguments: Any
) -> Opened:
    """Loads the model that ``config`` describes with the weights beside it, in eval mode.

    Args:
        place: a folder, or the id of a repository.
        config: the model's, as it is in the file.
        family: replaces the config's scale and shift with the family's.
        arguments: constructor arguments that replace the config's, and options of ``from_pretrained``.

    Raises:
        ValueError: a class that is not one of our autoencoders, an unknown argument, or weights that are
            missing, damaged, or of another model.
    """
    name = config.get("_class_name")
    cls = _class_called(name, place)
    unknown = arguments.keys() - {*_OPTIONS, *inspect.signature(cls.__init__).parameters}
    if unknown:
        raise ValueError(f"{', '.join(sorted(unknown))}: no argument of {name}, nor of from_pretrained")
    changes = _omitted_by(config)
    if family is not None:
        changes |= _family_arguments(family, config)
    try:
        with _without_lists_of_names():
            model, report = cls.from_pretrained(place, output_loading_info=True, **{**changes, **arguments})
    except (OSError, RuntimeError, ValueError, *_BAD_VALUE_ERRORS) as error:
        if Path(place).is_dir():  # gives a clearer message where the files are at fault
            check_weights(Path(place), arguments.get("variant"))
        raise ValueError(f"the model in {place} cannot be loaded: {first_line(error)}") from error
    unexpected = sorted(report["unexpected_keys"])
    if missing := sorted(report["missing_keys"]):
        others = ""
        if unexpected:
            others = f", and hold {len(unexpected)} others, such as {shorten(unexpected[0])}"
        raise ValueError(
            f"the weights in {place} lack {len(missing)} tensors, such as {missing[0]}{others}"
            f"{adapter_remedy(unexpected)}"
        )
    if unexpected:
        logger.warning(
            "The weights in %s hold %d tensors that a %s does not have, such as %s; they are left out.",
            place,
            len(unexpected),
            cls.__name__,
            shorten(unexpected[0]),
        )
    return ForeignAutoencoder.around(model) if name in foreign.CLASSES else model.eval()


def _class_called(name: Any, place: str) -> Any:
    """Returns the class that loads the weights of a model; raises ValueError where there is none."""
    if name in CLASSES:
        return CLASSES[name]
    if name in foreign.CLASSES:
        return foreign.stock_class(name)
    if name in foreign.REFUSED:
        raise ValueError(f"{place}/{CONFIG} describes a {name}, which {foreign.REFUSED[name]}")
    known = ", ".join([*CLASSES, *foreign.CLASSES])
    raise ValueError(f"{place}/{CONFIG} describes a {name}, but must be one of {known}")


def fetch_config(
    repository: str, subfolder: str | None, arguments: Mapping[str, Any]
) -> tuple[dict[str, Any], str | None]:
    """Returns the config of a model on the hub or in its cache, and the subfolder where it was found.

    Args:
        repository: ``owner/name``.
        subfolder: where None, the top is tried, then the parts of pipelines.
        arguments: those that say what to fetch, such as ``revision``, are passed on; others are ignored.

    Raises:
        ValueError: there is none, or no connection and nothing in the cache.
    """
    fetching = {name: value for name, value in arguments.items() if name in _FETCHING}
    failures: list[Exception] = []
    for part in (None, *PIPELINE_PARTS) if subfolder is None else (subfolder,):
        try:
            return KLVAE.load_config(repository, subfolder=part, **fetching), part
        except (OSError, ValueError) as error:
            failures.append(error)
    # diffusers says "no such file" also where there is no connection.
    beneath = failures[0].__cause__ or failures[0].__context__
    problem = first_line(failures[0])
    if type(beneath).__name__ == "LocalEntryNotFoundError":
        cause = None if beneath is None else beneath.__cause__
        reason = "" if cause is None else f" ({first_line(cause)})"
        problem = f"it is not in the cache, and the hub cannot be reached{reason}"
    raise ValueError(
        f"{repository!r} is no path here, and no autoencoder could be fetched from the hub under this name: "
        f"{problem}"
    ) from failures[0]


@contextmanager
def _without_lists_of_names() -> Iterator[None]:
    """Keeps diffusers from listing all missing or unexpected tensors, of which there can be thousands."""

    def is_no_list(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Some weights of ")

    diffusers = logging.getLogger("diffusers.models.modeling_utils")
    diffusers.addFilter(is_no_list)
    try:
        yield
    finally:
        diffusers.removeFilter(is_no_list)


def _family_arguments(family: str, config: Mapping[str, Any]) -> dict[str, Any]:
    if config["_class_name"] in foreign.CLASSES:
        name = config["_class_name"]
        raise ValueError(f"family is {family!r}, but an {name} is of none: leave family out")
    if CLASSES[config["_class_name"]] is TinyAutoencoder:
        raise ValueError(f"family is {family!r}, but the latents of an AutoencoderTiny are scaled already")
    if CLASSES[config["_class_name"]] is Flux2VAE:
        raise ValueError(_NO_FAMILY.format(family))
    named = check_family(family, config.get("vq_embed_dim") or config["latent_channels"])
    return Normalisation(named.scale, named.shift).arguments()


def _omitted_by(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a config omits, by the defaults of the class it names, which may be a stock class."""
    name = config["_class_name"]
    if name in foreign.CLASSES:  # from_pretrained takes the defaults of the class itself
        return {}
    stock = CLASSES[name]._stock_class
    return stock_meaning(config, stock) if stock is not None and name == stock.__name__ else {}


# --- single files ---


def load_single_file(
    path: Path,
    *,
    family: str | None = None,
    torch_dtype: torch.dtype | None = None,
    ema: bool = False,
    **arguments: Any,
) -> Autoencoder:
    """Loads the autoencoder in a safetensors file or a pickle, alone or in a whole checkpoint.

    What its tensors do not show comes from the file's metadata, where our own files have it, or else from a
    ``config.json`` beside it, if that describes this model.

    Args:
        path: a file in latent diffusion's, taming's, diffusers' or TAESD's layout of names. Where TAESD is in
            two files, either of them: their names differ in "encoder" and "decoder".
        family: gives the scale and shift where the file does not record them.
        torch_dtype: of the weights; None means float32, whatever the file has.
        ema: take the averaged weights that trainers keep beside the plain ones.
        arguments: constructor arguments that replace what was found or tensors do not show.

    Raises:
        ValueError: anything that keeps the file from being read as an autoencoder.
    """
    try:
        return _load(path, family, torch_dtype or torch.float32, ema, arguments)
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from error


def find_configs(path: Path, metadata: Mapping[str, str]) -> list[tuple[str, dict[str, Any]]]:
    """Returns the configs that may describe the model in a file, the likeliest first: (place, config).

    Args:
        path: of the file. A ``config.json`` beside it counts, unless it is not valid JSON.
        metadata: of the file, where our own files have their config.

    Raises:
        ValueError: the config in the metadata is not a JSON object.
    """
    own = config_in(metadata)
    found = [] if own is None else [("the config in its metadata", own)]
    if (path.parent / CONFIG).is_file():
        try:
            found.append((f"{CONFIG} beside it", read_config(path.parent)))
        except ValueError as error:  # it may have nothing to do with the file
            logger.warning("%s. It is not used to open %s", error, path.name)
    return [(place, config) for place, config in found if config.get("_class_name") in CLASSES]


def _load(
    path: Path, family: str | None, dtype: torch.dtype, ema: bool, overrides: dict[str, Any]
) -> Autoencoder:
    checkpoint = read_checkpoint(path)
    tiny = find_taesd(path, checkpoint)
    if tiny is not None and family is not None:
        raise ValueError(f"family is {family!r}, but this is TAESD, whose latents are scaled already")
    if tiny is not None and ema:
        raise ValueError("variant is 'ema', but this is TAESD, which has no averaged weights")

    # A config says more than tensors, if it describes this model.
    for place, config in find_configs(path, checkpoint.metadata):
        cls = CLASSES[config["_class_name"]]
        taken = inspect.signature(cls.__init__).parameters
        own = {name: value for name, value in config.items() if name in taken}
        try:
            model = _build(cls, {**own, **_omitted_by(config)}, overrides)
        except ValueError as error:
            raise ValueError(f"{place} cannot be used: {error}") from error
        state = _state_of(model, checkpoint, ema) if tiny is None else tiny.state
        missing = model.state_dict().keys() - state.keys()
        if missing and missing <= set(FLUX2_STATISTICS):  # all else is there
            check_flux2(state, "", is_flux2=True)
        objection = _objection(model, state)
        if objection is None:
            _normalise(model, checkpoint, family, overrides)
            return _fill(model, state, dtype)
        logger.warning("%s is not described by %s: by it, the file %s.", path, place, objection)

    # Otherwise the tensors have to show the architecture.
    if tiny is not None:
        model, state = _build(TinyAutoencoder, tiny.arguments, overrides), tiny.state
    else:
        model, state = _infer_model(path, checkpoint, family, ema, overrides)
    objection = _objection(model, state)
    if objection is not None:
        raise ValueError(objection)
    return _fill(model, state, dtype)


def _normalise(
    model: Autoencoder, checkpoint: Checkpoint, family: str | None, overrides: Mapping[str, Any]
) -> None:
    """Takes the scale from the family, or from the metadata where the model's config does not have it."""
    if isinstance(model, Flux2VAE) and family is not None:
        raise ValueError(_NO_FAMILY.format(family))
    if family is None and model.has_known_scale:
        return
    found = find_normalisation(
        model.latents_channels, factor=0, metadata=checkpoint.metadata, tensors={}, family=family
    )
    model.change_config(**{k: v for k, v in found.arguments().items() if k not in overrides})


def _infer_model(
    path: Path, checkpoint: Checkpoint, family: str | None, ema: bool, overrides: Mapping[str, Any]
) -> tuple[Autoencoder, dict[str, Tensor]]:
    """Builds a model of the architecture that tensors show; returns it with its tensors."""
    prefix = find_prefix(checkpoint.tensors, ema=ema)
    check_flux2(checkpoint.tensors, prefix)
    state = find_autoencoder(checkpoint.tensors, ema=ema, keep=FLUX2_STATISTICS)
    is_ldm = is_ldm_layout(checkpoint.tensors)
    architecture = infer_architecture(state, overrides.get("norm_num_groups"), is_ldm=is_ldm)
    if architecture.guessed_groups:
        logger.warning(_GUESSED, path, list(architecture.arguments["block_out_channels"]))
    if architecture.is_flux2:
        if family is not None:
            raise ValueError(_NO_FAMILY.format(family))
        return _build(Flux2VAE, architecture.arguments, overrides), state
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
    """Returns a model's tensors in a file: under its own names, or wherever an autoencoder is."""
    own = model.state_dict().keys()
    if ema or not own <= checkpoint.tensors.keys():
        return find_autoencoder(checkpoint.tensors, ema=ema, keep=own)
    return {
        name: tensor
        for name, tensor in checkpoint.tensors.items()
        if name in own or not is_for_training(name, tensor)
    }


def _objection(model: Module, state: Mapping[str, Tensor]) -> str | None:
    """Says why these are not a model's tensors, with the file as the subject; None where they are."""
    own, cls = model.state_dict(), type(model).__name__
    if missing := sorted(own.keys() - state.keys()):
        return f"lacks {len(missing)} tensors of a {cls}, such as {missing[0]}{adapter_remedy(state)}"
    if unexpected := sorted(state.keys() - own.keys()):
        return f"holds {len(unexpected)} tensors that a {cls} does not have, such as {shorten(unexpected[0])}"
    for name, tensor in own.items():
        if tensor.shape != state[name].shape:
            return (
                f"holds {name} of shape {list(state[name].shape)}, but everything else fits a {cls} with "
                f"{list(tensor.shape)}"
            )
    return None


def _fill(model: Autoencoder, state: Mapping[str, Tensor], dtype: torch.dtype) -> Autoencoder:
    """Loads weights into a model and puts it into eval mode."""
    check_floating(state, model.state_dict())
    Module.to(model, dtype)  # diffusers' own warns of modules to keep in float32, and there are none
    model.load_state_dict(state)
    return model.eval()
