"""A probe's folder: its settings, its finished and unfinished models, and no files of anyone else."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from latentae.files import check_output_folder, has_keys, write_aside, write_json, written_aside
from latentae.report.tables import shortened

SETTINGS, RESULTS = "settings.json", "results.json"
_KEYS = {"models", "sampling_steps"}  # of a probe's settings
# Of settings. Version 1 drew other random numbers: its probes open only if they are complete.
_VERSION = 2
_STEPS_OF_VERSION_1 = 2000  # which noted its default as null

_ELSEWHERE = "choose another --out, or remove this one"


@dataclass(frozen=True)
class ProbeFolder:
    """The folder that a probe writes: ``root``, with a subfolder per model."""

    root: Path

    def check(self) -> None:
        """Raises ValueError unless a probe may write here; see ``check_output_folder``."""
        check_output_folder(self.root, "a probe", has_keys(self.root / SETTINGS, _KEYS))

    def claim(self, settings: dict[str, Any]) -> None:
        """Writes the settings of a new probe, or checks that this one has the same.

        Raises:
            ValueError: it has other settings, which the message names; or it is unfinished and was begun by
                a version with other random numbers.
        """
        settings = json.loads(json.dumps(settings))  # as it will be read
        if not (self.root / SETTINGS).is_file():
            self.root.mkdir(parents=True, exist_ok=True)
            write_json(self.root / SETTINGS, {"version": _VERSION, **settings})
            return
        version, begun = self._begun()
        differing = [name for name in {**settings, **begun} if begun.get(name) != settings.get(name)]
        if differing:
            name = differing[0]
            others = f" (and {', '.join(differing[1:])})" if differing[1:] else ""
            change = _change(name, begun.get(name), settings.get(name))
            raise ValueError(f"{self.root} was begun with {change}{others}: {_ELSEWHERE}")
        if version != _VERSION and not self.is_complete:
            raise ValueError(
                f"{self.root} is unfinished and was begun by another version of latentae, whose random "
                f"numbers differ: {_ELSEWHERE}"
            )

    def _begun(self) -> tuple[int, dict[str, Any]]:
        """Returns the version and the settings with which the probe was begun."""
        begun: dict[str, Any] = json.loads((self.root / SETTINGS).read_text(encoding="utf-8"))
        version = begun.pop("version", 1)
        if version == 1 and begun.get("seconds") is None:  # else steps followed from a measured speed
            begun.pop("seconds", None)
            begun["steps"] = begun.get("steps") or _STEPS_OF_VERSION_1
        return version, begun

    @property
    def is_complete(self) -> bool:
        """True once the report is written."""
        return (self.root / RESULTS).is_file()

    def model(self, name: str) -> ModelFolder:
        """Returns the subfolder of a model."""
        return ModelFolder(self.root / name)


@dataclass(frozen=True)
class ModelFolder:
    """The subfolder ``root`` of one model: caches of latents, the training's state, pipeline and results."""

    root: Path

    @property
    def pipeline(self) -> Path:
        """The trained denoiser with its autoencoder."""
        return self.root / "pipeline"

    @property
    def latents(self) -> Path:
        """The caches of latents."""
        return self.root / "latents"

    def result(self) -> Any:
        """Returns the results of the model as a dict; None while it is unfinished."""
        file = self.root / "result.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    def finish(self, result: dict[str, Any]) -> None:
        """Writes the results, and removes the training's state."""
        write_json(self.root / "result.json", result)
        self._state.unlink(missing_ok=True)

    def save_state(self, state: dict[str, Any]) -> None:
        """Writes a training's state, whole or not at all.

        Raises:
            FullDiskError: the disk is full; the previous state remains.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        for unfinished in self.root.glob(f".{self._state.name}.*"):
            unfinished.unlink()
        content = io.BytesIO()  # written to a file, torch reports a full disk as another error
        torch.save(state, content)
        write_aside(self._state, content.getvalue())

    def load_state(self) -> Any:
        """Returns the state of a stopped training as a dict; None where there is none."""
        return (
            torch.load(self._state, map_location="cpu", weights_only=True) if self._state.is_file() else None
        )

    def write_pipeline(self, pipeline: Any) -> None:
        """Saves the pipeline, whole or not at all.

        Raises:
            OSError: it cannot be written; the disk may be full.
        """
        try:
            with written_aside(self.pipeline) as aside:
                pipeline.save_pretrained(aside)
        except (SafetensorError, OSError) as error:
            raise OSError(f"{self.pipeline} cannot be written: {error}") from error

    @property
    def _state(self) -> Path:
        return self.root / "training.pt"


def _change(name: str, before: Any, now: Any) -> str:
    """Describes a changed setting; models by their names, since a hash tells a reader nothing."""
    if name != "models" or not isinstance(before, dict):
        return f"{name} {_text(before)}, and this is {_text(now)}"
    if set(before) != set(now):
        return f"the models {', '.join(before)}, and this is of {', '.join(now)}"
    changed = [model for model in now if before[model] != now[model]]
    return f"another model as {', '.join(changed)}, or with this one before it changed"


def _text(value: Any) -> str:
    return shortened(json.dumps(value, ensure_ascii=False), 80)
