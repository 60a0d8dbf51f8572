"""A model's config in the metadata of its safetensors file: what tensors do not show goes where they go."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentae.models.checkpoints.folders import CONFIG, read_config

CONFIG_KEY = "latentae.config"
# Whole files, of any variant. A shard is of no use alone, and its folder has the config.
_WHOLE = re.compile(r"diffusion_pytorch_model(\.(?!.*-\d+-of-\d+)[\w-]+)?\.safetensors")
_PLACE = "_name_or_path"  # where the model was once loaded from concerns nobody


def config_metadata(config: Mapping[str, Any]) -> dict[str, str]:
    """The entry of a file's metadata that holds a config.

    Args:
        config: as in ``config.json``, with ``_class_name``.
    """
    return {CONFIG_KEY: json.dumps({name: value for name, value in config.items() if name != _PLACE})}


def config_in(metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """The config in a file's metadata; None where there is none.

    Raises:
        ValueError: it is no JSON object.
    """
    if CONFIG_KEY not in metadata:
        return None
    try:
        config = json.loads(metadata[CONFIG_KEY])
    except ValueError as error:
        raise ValueError(f"{CONFIG_KEY} in the metadata is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(
            f"{CONFIG_KEY} in the metadata is a {type(config).__name__}, but must be a JSON object"
        )
    return config


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
    """Adds entries to a safetensors file, which is written anew beside its place, unless it has them."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        before = header.get("__metadata__", {})
        after = {**before, **entries}
        if after == before:
            return
        text = json.dumps({**header, "__metadata__": after}, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # so that the tensors stay aligned
        descriptor, aside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as copy:
                copy.write(len(text).to_bytes(8, "little") + text)
                shutil.copyfileobj(file, copy, 1 << 20)
            shutil.copymode(path, aside)
            Path(aside).replace(path)
        except BaseException:
            Path(aside).unlink()
            raise
