"""Training and evaluation from Python, without the command line: ``load_config`` and ``evaluate``.

``import latentae`` offers them beside ``Trainer``, ``load_autoencoder`` and ``export_autoencoder``. Mistakes
raise exceptions, and messages are printed, so all of it works in a notebook.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from latentae import distributed
from latentae.config import ConfigError, RunConfig, config_from_mapping
from latentae.config.command_line import place_override
from latentae.config.describe import known_keys
from latentae.config.files import read_layers
from latentae.config.merge import merge
from latentae.config.messages import unknown_key
from latentae.config.pretrained import fill_in
from latentae.evaluation.evaluate import Request
from latentae.evaluation.evaluate import evaluate as evaluate_request
from latentae.evaluation.measuring import Settings
from latentae.report.results import Results
from latentae.training.run_folder import describe_pretrained


def load_config(config: str | Path = "quickstart", overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """Returns a validated config for ``Trainer``.

    Args:
        config: name of a shipped config (docs/models.md lists them), or path of a YAML file, such as the
            ``config.yaml`` of a run.
        overrides: values by their keys, as docs/reference.md lists them: ``{"data.image_size": 64}``. The
            value of a section is a mapping, which is merged with the section. None is YAML's null.

    Raises:
        ConfigError: a ValueError that says what is wrong, one problem per line, with key, value and remedy.
    """
    nested: dict[str, Any] = {}
    unknown = [unknown_key(key) for key in overrides or {} if key not in known_keys()]
    if unknown:
        raise ConfigError("\n".join(unknown))
    for key, value in (overrides or {}).items():
        place_override(key, _plain(value), nested, key)
    return config_from_mapping(fill_in(merge(read_layers(str(config)), nested), describe_pretrained))


def _plain(value: Any) -> Any:
    """Returns a value as YAML would give it: paths become text, tuples lists, and mappings dicts."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def evaluate(
    models: str | Path | Sequence[str | Path],
    data: str | Path,
    out: str | Path,
    *,
    device: torch.device | str | None = None,
    batch_size: int = 16,
    num_workers: int = 0,
    cycle_images: int = 32,
    say: Callable[[str], None] = print,
    **options: Any,
) -> Results:
    """Measures models side by side on the same images and writes a report, as ``latentae evaluate`` does.

    ``results.models["run"]["psnr"].value`` is a number, and ``.low`` and ``.high`` its 95 % interval.
    An interrupted evaluation continues where it stopped.

    Args:
        models: what ``load_autoencoder`` opens, one or several; ``"name=path"`` gives a model a name.
        data: ``photos``, a path, or a data set of the Hugging Face hub.
        out: folder of the report, which must not hold one yet, unless ``overwrite=True``.
        device: where to run; None takes a GPU if there is one.
        batch_size: images per batch.
        num_workers: processes that decode images.
        cycle_images: images that are encoded repeatedly, to measure drift.
        say: receives messages, one line each.
        options: more fields of ``latentae.evaluation.evaluate.Request``, such as ``limit=100``,
            ``protocol="native"``, ``features=False`` or ``teacher="stabilityai/sdxl-vae"``.

    Raises:
        ValueError: a model, the data or an option cannot be used, or the report exists already. All of this
            is checked before anything is measured.
        TypeError: there is no such option.
    """
    listed = [models] if isinstance(models, str | os.PathLike) else list(models)
    settings = Settings(batch_size, num_workers, cycle_images)
    request = Request([str(model) for model in listed], str(data), Path(out), settings=settings, **options)
    with distributed.init_from_environment() as chosen:
        return evaluate_request(request, chosen if device is None else torch.device(device), say)
