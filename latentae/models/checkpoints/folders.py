"""Which folder holds the model, and what its config means to the class it was written by."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from latentae.models.checkpoints.reading import read_checkpoint

CONFIG = "config.json"
# Below the folder one may be handed: a run's model, and the autoencoder of a pipeline.
_RUN = "model"
PIPELINE_PARTS = ("vae", "vqvae", "movq")
_MODEL_FILE = "diffusion_pytorch_model"
_PLAIN = re.compile(_MODEL_FILE + r"(-\d+-of-\d+)?\.(safetensors|bin)")  # of no variant; whole, or a part
WEIGHTS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


def find_model_folder(folder: Path, subfolder: str | None = None) -> Path:
    """The folder with ``config.json``: this one, that of a run, or that of a pipeline's autoencoder.

    Raises:
        ValueError: none of them has one; the message says what is there instead.
    """
    found = look_for_config(folder, subfolder)
    if found is None:
        looked = folder if subfolder is None else folder / subfolder
        raise ValueError(f"no model in {looked}: no {CONFIG} there. {_advice(looked)}")
    return found


def look_for_config(folder: Path, subfolder: str | None = None) -> Path | None:
    """As ``find_model_folder``, but None where there is none."""
    parts = ("", _RUN, *PIPELINE_PARTS) if subfolder is None else (subfolder,)
    return next((folder / part for part in parts if (folder / part / CONFIG).is_file()), None)


def _advice(folder: Path) -> str:
    if not folder.is_dir():
        return "There is no such folder"
    weights = sorted(path.name for path in folder.iterdir() if path.suffix in WEIGHTS)
    if weights:
        return f"To read {weights[0]}, name the file itself"
    if (folder / "checkpoints").is_dir():
        return "It is a run that has not written its model yet"
    return "A run's model is in <output_dir>/model"


def check_weights(folder: Path, variant: str | None = None) -> None:
    """Checks the files of weights in a model's folder.

    Raises:
        ValueError: there are none, or none of that variant, or one that is cut off, damaged, or no weights.
    """
    present = sorted(path for path in folder.iterdir() if path.name.startswith(_MODEL_FILE))
    if variant is None:
        chosen = [path for path in present if _PLAIN.match(path.name)]
    else:
        chosen = [path for path in present if f".{variant}" in path.name]
    if not chosen:
        what = "plain weights" if variant is None else f"weights of variant {variant!r}"
        there = ", ".join(path.name for path in present) or "no file named so"
        raise ValueError(f"{folder} holds no {what}, {_MODEL_FILE}*: there is {there}")
    for path in chosen:
        if path.suffix in WEIGHTS:
            read_checkpoint(path)


def read_config(folder: Path) -> dict[str, Any]:
    """The config in a model's folder.

    Raises:
        ValueError: it is no JSON object.
    """
    file = folder / CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} holds a {type(config).__name__}, but must hold a JSON object")
    return config


def stock_meaning(config: Mapping[str, Any], stock: Callable[..., Any]) -> dict[str, Any]:
    """What a config of ``stock`` leaves out, by that class's defaults, which are not always ours.

    Configs of the first SD 1 releases say no ``scaling_factor``: diffusers takes 0.18215.

    Args:
        config: as it stands in the file.
        stock: the class that wrote it.
    """
    parameters = inspect.signature(stock).parameters
    missing = {
        name: parameter.default
        for name, parameter in parameters.items()
        if name not in config and parameter.default is not inspect.Parameter.empty
    }
    # SD3 and FLUX pipelines calculate with the shift: it must be a number.
    if "shift_factor" in parameters and config.get("shift_factor") is None:
        missing["shift_factor"] = 0.0
    return missing
