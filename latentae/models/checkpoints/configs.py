"""Finds and reads a model's config: ``config.json``, or the metadata of a safetensors file."""

from __future__ import annotations

import inspect
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from latentae.files import open_aside
from latentae.models.checkpoints.reading import read_checkpoint

CONFIG = "config.json"
CONFIG_KEY = "latentae.config"  # of a safetensors file's metadata
PIPELINE_PARTS = ("vae", "vqvae", "movq")
WEIGHTS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
_MODEL_FILE = "diffusion_pytorch_model"
# Weights of no variant: whole, or one shard.
_PLAIN = re.compile(_MODEL_FILE + r"(-\d+-of-\d+)?\.(safetensors|bin)")
# Whole files of any variant. A shard is of no use alone, and its folder has the config.
_WHOLE = re.compile(_MODEL_FILE + r"(\.(?!.*-\d+-of-\d+)[\w-]+)?\.safetensors")


def find_model_folder(folder: Path, subfolder: str | None = None) -> Path:
    """Returns the folder with ``config.json``: this one, that of a run, or that of a pipeline's autoencoder.

    Raises:
        ValueError: none of them has one; the message says what is there instead.
    """
    found = look_for_config(folder, subfolder)
    if found is not None:
        return found
    folder = folder / (subfolder or "")
    if not folder.is_dir():
        advice = "There is no such folder"
    elif weights := sorted(path.name for path in folder.iterdir() if path.suffix in WEIGHTS):
        advice = f"To read {weights[0]}, name the file itself"
    elif (folder / "checkpoints").is_dir():
        advice = "It is a run that has not written its model yet"
    else:
        advice = "A run's model is in <output_dir>/model"
    raise ValueError(f"no model in {folder}: no {CONFIG} there. {advice}")


def look_for_config(folder: Path, subfolder: str | None = None) -> Path | None:
    """Does the same as ``find_model_folder``, but returns None where there is no config."""
    parts = ("", "model", *PIPELINE_PARTS) if subfolder is None else (subfolder,)
    return next((folder / part for part in parts if (folder / part / CONFIG).is_file()), None)


def check_weights(folder: Path, variant: str | None = None) -> None:
    """Checks the files of weights in a model's folder.

    Raises:
        ValueError: there are none, or none of that variant, or one that is truncated, damaged, or something
            else.
    """
    present = sorted(path for path in folder.iterdir() if path.name.startswith(_MODEL_FILE))
    if variant is None:
        chosen = [path for path in present if _PLAIN.match(path.name)]
    else:
        chosen = [path for path in present if f".{variant}" in path.name]
    if not chosen:
        what = "plain weights" if variant is None else f"weights of variant {variant!r}"
        there = ", ".join(path.name for path in present) or "no such file"
        raise ValueError(f"{folder} holds no {what}, {_MODEL_FILE}*: there is {there}")
    for path in chosen:
        if path.suffix in WEIGHTS:
            read_checkpoint(path)


def read_config(folder: Path) -> dict[str, Any]:
    """Reads the config in a model's folder.

    Raises:
        ValueError: it is not a JSON object.
    """
    file = folder / CONFIG
    return _parse_object(file.read_text(encoding="utf-8"), str(file))


def config_in(metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """Returns the config in a file's metadata; None where there is none.

    Raises:
        ValueError: it is not a JSON object.
    """
    if CONFIG_KEY not in metadata:
        return None
    return _parse_object(metadata[CONFIG_KEY], f"{CONFIG_KEY} in the metadata")


def _parse_object(text: str, where: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{where} is a {type(config).__name__}, but must be a JSON object")
    return config


def stock_meaning(config: Mapping[str, Any], stock: Callable[..., Any]) -> dict[str, Any]:
    """Returns what a config of the class ``stock`` omits: that class's defaults, which may differ from ours.

    Configs of the first SD 1 releases have no ``scaling_factor``: diffusers takes 0.18215.

    Args:
        config: as it is in the file.
        stock: the class that wrote it.
    """
    parameters = inspect.signature(stock).parameters
    missing = {
        name: parameter.default
        for name, parameter in parameters.items()
        if name not in config and parameter.default is not inspect.Parameter.empty
    }
    # SD3 and FLUX pipelines compute with the shift, so it must be a number.
    if "shift_factor" in parameters and config.get("shift_factor") is None:
        missing["shift_factor"] = 0.0
    return missing


def config_metadata(config: Mapping[str, Any]) -> dict[str, str]:
    """Returns the metadata entry that holds a config.

    Args:
        config: as in ``config.json``, with ``_class_name``. The path that the model was once loaded from
            (``_name_or_path``) is left out.
    """
    shared = {name: value for name, value in config.items() if name != "_name_or_path"}
    return {CONFIG_KEY: json.dumps(shared)}


def embed_config(folder: Path) -> None:
    """Writes the config in a model's folder into the metadata of its safetensors files.

    Raises:
        OSError: a file cannot be written; it is then as it was.
    """
    entry = config_metadata(read_config(folder)) if (folder / CONFIG).is_file() else {}
    for path in folder.iterdir():
        if entry and _WHOLE.fullmatch(path.name):
            _add_metadata(path, entry)


def _add_metadata(path: Path, entries: Mapping[str, str]) -> None:
    """Adds entries to a safetensors file's metadata: rewrites the file, unless it has them already."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        before = header.get("__metadata__", {})
        after = {**before, **entries}
        if after == before:
            return
        text = json.dumps({**header, "__metadata__": after}, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # so that the tensors stay aligned
        with open_aside(path, 8 + len(text) + path.stat().st_size - file.tell()) as copy:
            copy.write(len(text).to_bytes(8, "little") + text)
            shutil.copyfileobj(file, copy, 1 << 20)
            shutil.copymode(path, copy.name)
