"""The results of an evaluation, and the JSON file that holds them."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Value:
    """A metric of a model.

    Attributes:
        value: the number.
        low, high: 95 % bootstrap interval of a mean over images; of KID, one deviation around it; else None.
    """

    value: float
    low: float | None = None
    high: float | None = None


@dataclass
class ModelDetails:
    """What else is known of a model.

    Attributes:
        class_name, path, sha256: what was measured; the hash is of its weights.
        parameters: how many it has.
        downsampling_factor, latent_channels: of its latents.
        latents: ``mean``, ``std`` and ``kurtosis``, each a number per channel.
        percentiles: metric → percent (as text) → value, over images.
        cycle_psnr: rounds (as text) → dB.
        remarks: what a reader should know, such as why a metric is missing.
    """

    class_name: str
    path: str
    sha256: str
    parameters: int
    downsampling_factor: int
    latent_channels: int
    latents: dict[str, list[float]] = field(default_factory=dict)
    percentiles: dict[str, dict[str, float]] = field(default_factory=dict)
    cycle_psnr: dict[str, float] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


@dataclass
class Picture:
    """One image that the report shows.

    Attributes:
        index, name: which image of the data.
        why: why it is shown, such as ``worst of kl_f8`` or ``random``.
        original: file of the original, relative to the report.
        reconstructions: model → file.
        values: model → metric → value of this image.
    """

    index: int
    name: str
    why: list[str]
    original: str
    reconstructions: dict[str, str]
    values: dict[str, dict[str, float]]


@dataclass
class Results:
    """Everything a report says.

    Attributes:
        protocol: every choice that numbers depend on, and hashes of data, weights and code.
        models: model → metric → value; models in the order they were given, metrics by lower-case names.
        details: model → what else is known.
        pictures: what is shown.
    """

    protocol: dict[str, Any]
    models: dict[str, dict[str, Value]]
    details: dict[str, ModelDetails] = field(default_factory=dict)
    pictures: list[Picture] = field(default_factory=list)

    def to_json(self) -> str:
        """The text of ``results.json``; numbers that are not finite become null, which JSON can hold."""
        return json.dumps(finite(asdict(self)), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Results:
        """What ``to_json`` was called on; null numbers come back as NaN.

        Raises:
            ValueError: the text is no such JSON.
        """
        try:
            data = json.loads(text)
            models = {
                model: {metric: _value(entry) for metric, entry in metrics.items()}
                for model, metrics in data["models"].items()
            }
            details = {model: ModelDetails(**entry) for model, entry in data["details"].items()}
            return cls(data["protocol"], models, details, [Picture(**entry) for entry in data["pictures"]])
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"this is not the results.json of an evaluation: {error!r}") from error

    @classmethod
    def load(cls, path: Path) -> Results:
        """Reads ``results.json``, or the folder of a report.

        Raises:
            ValueError: there is none, or it is damaged.
        """
        file = path / "results.json" if path.is_dir() else path
        try:
            return cls.from_json(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{file}: {error}") from error


def _value(entry: dict[str, Any]) -> Value:
    return Value(float("nan") if entry["value"] is None else entry["value"], entry["low"], entry["high"])


def finite(data: Any) -> Any:
    """Returns nested data with null in place of numbers that are not finite, which JSON cannot hold."""
    if isinstance(data, dict):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, list):
        return [finite(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data
