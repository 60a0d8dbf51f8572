"""A probe's folder: what it was begun with, what of it is finished, and nothing of anyone else's."""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from latentae.files import has_keys, write_aside, written_aside

SETTINGS, RESULTS = "settings.json", "results.json"
_KEYS = {"models", "sampling_steps"}  # of a probe's settings

_ELSEWHERE = "choose another --out, or remove this one"


@dataclass(frozen=True)
class ProbeFolder:
    """Where a probe writes.

    Attributes:
        root: the folder.
    """

    root: Path

    def check(self) -> None:
        """Whether a probe may write here at all; nothing is written.

        Raises:
            ValueError: it may not.
        """
        root = self.root
        if root.is_dir() and any(root.iterdir()) and not has_keys(root / SETTINGS, _KEYS):
            raise ValueError(
                f"{root} holds other files than a probe: choose a new or an empty folder for --out"
            )
        place = root
        while not place.exists() and place != place.parent:
            place = place.parent
        if not place.is_dir():
            raise ValueError(f"{root} cannot be a folder: {place} is a file")
        if not os.access(place, os.W_OK | os.X_OK):
            raise ValueError(f"{root} cannot be written: there is no permission to write in {place}")

    def claim(self, settings: dict[str, Any]) -> None:
        """Notes what the probe depends on, or finds that it was begun with the same.

        Raises:
            ValueError: it was begun with other settings; the message names them.
        """
        settings = json.loads(json.dumps(settings))  # as it will be read
        file = self.root / SETTINGS
        if file.is_file():
            begun = json.loads(file.read_text(encoding="utf-8"))
            differing = [name for name in settings if begun.get(name) != settings[name]]
            if differing:
                name = differing[0]
                others = f" (and {', '.join(differing[1:])})" if differing[1:] else ""
                change = _change(name, begun.get(name), settings[name])
                raise ValueError(f"{self.root} was begun with {change}{others}: {_ELSEWHERE}")
            return
        self.root.mkdir(parents=True, exist_ok=True)
        write_json(file, settings)

    @property
    def is_complete(self) -> bool:
        """Whether the probe has ended, with its report."""
        return (self.root / RESULTS).is_file()

    def model(self, name: str) -> ModelFolder:
        """The part of a model."""
        return ModelFolder(self.root / name)


@dataclass(frozen=True)
class ModelFolder:
    """What a probe writes of one model.

    Attributes:
        root: the folder.
    """

    root: Path

    @property
    def pipeline(self) -> Path:
        """The trained denoiser with its autoencoder."""
        return self.root / "pipeline"

    @property
    def latents(self) -> Path:
        """The caches of latents."""
        return self.root / "latents"

    def result(self) -> dict[str, Any] | None:
        """What was found of the model; None while it is not finished."""
        file = self.root / "result.json"
        if not file.is_file():
            return None
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found

    def finish(self, result: dict[str, Any]) -> None:
        """Notes the result; the training's state is no longer needed."""
        write_json(self.root / "result.json", result)
        self._state.unlink(missing_ok=True)

    def save_state(self, state: dict[str, Any]) -> None:
        """Writes a training's state, whole or not at all.

        Raises:
            FullDiskError: no room for it; the state before is still there.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        for unfinished in self.root.glob(f".{self._state.name}.*"):
            unfinished.unlink()
        content = io.BytesIO()  # to a file, torch gives a full disk another name
        torch.save(state, content)
        write_aside(self._state, content.getvalue())

    def load_state(self) -> dict[str, Any] | None:
        """The state of a training that was stopped; None where there is none."""
        if not self._state.is_file():
            return None
        state: dict[str, Any] = torch.load(self._state, map_location="cpu", weights_only=True)
        return state

    def write_pipeline(self, pipeline: Any) -> None:
        """Saves the pipeline, whole or not at all.

        Raises:
            OSError: it cannot be written, for want of room perhaps.
        """
        try:
            with written_aside(self.pipeline) as aside:
                pipeline.save_pretrained(aside)
        except (SafetensorError, OSError) as error:
            raise OSError(f"{self.pipeline} cannot be written: {error}") from error

    @property
    def _state(self) -> Path:
        return self.root / "training.pt"


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Writes a file, whole or not at all."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_aside(file, text.encode(errors="backslashreplace"))  # a surrogate becomes JSON's own escape


def _change(name: str, before: Any, now: Any) -> str:
    """What was, and what is; of models their names, since a hash says nothing to a reader."""
    if name != "models" or not isinstance(before, dict):
        return f"{name} {_text(before)}, and this is {_text(now)}"
    if set(before) != set(now):
        return f"the models {', '.join(before)}, and this is of {', '.join(now)}"
    changed = [model for model in now if before[model] != now[model]]
    return f"another model as {', '.join(changed)}, or with this one before it changed"


def _text(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:79]}…"
