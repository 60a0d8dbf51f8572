"""A model from a folder with a config, or from a repository on the hub."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from latentae.models.checkpoints.classes import CLASSES, Autoencoder, meaning_of
from latentae.models.checkpoints.families import Normalisation, check_family
from latentae.models.checkpoints.folders import CONFIG, PIPELINE_PARTS, check_weights
from latentae.models.checkpoints.recognise import shorten
from latentae.models.checkpoints.tensors import adapter_remedy
from latentae.models.kl import KLVAE
from latentae.models.tiny import TinyAutoencoder

logger = logging.getLogger(__name__)

# What ``from_pretrained`` takes besides the config: what to fetch, and how to place the weights.
_FETCHING = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")
_PLACING = ("device_map", "disable_mmap", "low_cpu_mem_usage", "max_memory", "offload_folder")
_OPTIONS = (*_FETCHING, *_PLACING, "dtype", "subfolder", "torch_dtype", "use_safetensors", "variant")

# What the constructors of torch and diffusers raise for values that they do not check, such as 0 groups.
_OF_BAD_VALUES = (ArithmeticError, AttributeError, LookupError, TypeError)


def load_pretrained(
    place: str, config: Mapping[str, Any], *, family: str | None = None, **arguments: Any
) -> Autoencoder:
    """The model that ``config`` describes, with the weights beside it, in eval mode.

    Args:
        place: a folder, or the id of a repository.
        config: the model's, as it stands in the file.
        family: what the scale and shift are taken from, in place of the config's.
        arguments: constructor arguments in place of the config's, and options of ``from_pretrained``.

    Raises:
        ValueError: a class that is no autoencoder of ours, an unknown argument, or weights that are missing,
            damaged, or not this model's.
    """
    name = config.get("_class_name")
    if name not in CLASSES:
        raise ValueError(f"{place}/{CONFIG} describes a {name}, but must be one of {', '.join(CLASSES)}")
    cls = CLASSES[name]
    unknown = arguments.keys() - {*_OPTIONS, *inspect.signature(cls.__init__).parameters}
    if unknown:
        raise ValueError(f"{', '.join(sorted(unknown))}: no argument of {name}, nor of from_pretrained")
    changes = meaning_of(config)
    if family is not None:
        changes |= _family_arguments(family, config)
    try:
        with _without_lists_of_names():
            model, report = cls.from_pretrained(place, output_loading_info=True, **{**changes, **arguments})
    except (OSError, RuntimeError, ValueError, *_OF_BAD_VALUES) as error:
        if Path(place).is_dir():  # then it can be said better
            check_weights(Path(place), arguments.get("variant"))
        raise ValueError(f"the model in {place} cannot be loaded: {_first_line(error)}") from error
    if missing := sorted(report["missing_keys"]):
        there = sorted(report["unexpected_keys"])
        others = f", and hold {len(there)} others, such as {shorten(there[0])}" if there else ""
        raise ValueError(
            f"the weights in {place} lack {len(missing)} tensors, such as {missing[0]}{others}"
            f"{adapter_remedy(there)}"
        )
    if unexpected := sorted(report["unexpected_keys"]):
        logger.warning(
            "The weights in %s hold %d tensors that a %s has no place for, such as %s; they are left out.",
            place,
            len(unexpected),
            cls.__name__,
            shorten(unexpected[0]),
        )
    return model.eval()


@contextmanager
def _without_lists_of_names() -> Iterator[None]:
    """Keeps diffusers from listing all missing or unexpected tensors, of which there can be thousands."""

    def is_list(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Some weights of ")

    diffusers = logging.getLogger("diffusers.models.modeling_utils")
    diffusers.addFilter(is_list)
    try:
        yield
    finally:
        diffusers.removeFilter(is_list)


def fetch_config(
    repository: str, subfolder: str | None, arguments: Mapping[str, Any]
) -> tuple[dict[str, Any], str | None]:
    """The config of a model on the hub, or in its cache, and the subfolder it was found in.

    Args:
        repository: ``owner/name``.
        subfolder: where None, the top is tried, then the parts that pipelines have.
        arguments: of which those that say what to fetch are passed on, such as ``revision``.

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
    raise ValueError(
        f"{repository!r} is no path here, and no autoencoder could be fetched from the hub under this name: "
        f"{_fetching_problem(failures[0])}"
    ) from failures[0]


def _family_arguments(family: str, config: Mapping[str, Any]) -> dict[str, Any]:
    if CLASSES[config["_class_name"]] is TinyAutoencoder:
        raise ValueError(f"family is {family!r}, but the latents of an AutoencoderTiny are scaled already")
    named = check_family(family, config.get("vq_embed_dim") or config["latent_channels"])
    return Normalisation(named.scale, named.shift).arguments()


def _fetching_problem(error: Exception) -> str:
    """Why nothing was fetched; diffusers says "no such file" also where there is no connection."""
    beneath = error.__cause__ or error.__context__
    if type(beneath).__name__ != "LocalEntryNotFoundError":
        return _first_line(error)
    reason = "" if beneath is None or beneath.__cause__ is None else f" ({_first_line(beneath.__cause__)})"
    return f"it is not in the cache, and the hub cannot be reached{reason}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
