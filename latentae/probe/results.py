"""What a probe has found, and the JSON file that holds it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from latentae.probe.training import CurvePoint
from latentae.report.results import Results, Value


@dataclass
class ModelResult:
    """What was found of one model.

    Attributes:
        path, class_name, sha256: what was probed; the hash is of its weights.
        latent_shape: (c, h, w).
        patch_size: latents along a side of one of the denoiser's tokens.
        parameters: of the denoiser.
        metrics: by name, as ``METRICS`` of the evaluation's report explains them.
        curve: of the training.
        sample_seconds: a picture took.
        pictures: ``samples``, ``neighbours``, ``interpolations`` → file, relative to the report.
        remarks: what a reader should know.
    """

    path: str
    class_name: str
    sha256: str
    latent_shape: list[int]
    patch_size: int
    parameters: int
    metrics: dict[str, float]
    curve: list[CurvePoint]
    sample_seconds: float
    pictures: dict[str, str]
    remarks: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelResult:
        """What ``to_dict`` was called on."""
        return cls(**{**data, "curve": [CurvePoint(**point) for point in data["curve"]]})


@dataclass
class ProbeResults:
    """Everything a probe's report says.

    Attributes:
        settings: every choice that numbers depend on.
        models: in the order they were given.
        reconstruction: model → metric → value, on the held-out images.
        remarks: what holds for all of them.
    """

    settings: dict[str, Any]
    models: dict[str, ModelResult]
    reconstruction: dict[str, dict[str, Value]]
    remarks: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it; numbers that are not finite become null."""
        data: dict[str, Any] = _finite(asdict(self))
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ProbeResults:
        """What ``to_dict`` was called on; null numbers come back as NaN."""
        return cls(
            settings=data["settings"],
            models={name: ModelResult.from_dict(entry) for name, entry in data["models"].items()},
            reconstruction={
                model: {
                    name: Value(math.nan if v["value"] is None else v["value"], v["low"], v["high"])
                    for name, v in metrics.items()
                }
                for model, metrics in data["reconstruction"].items()
            },
            remarks=data["remarks"],
        )

    def generation_table(self) -> Results:
        """What was generated, for the tables of an evaluation's report."""
        metrics = {
            name: {metric: Value(value) for metric, value in model.metrics.items()}
            for name, model in self.models.items()
        }
        return Results(self.settings, metrics)

    def reconstruction_table(self) -> Results:
        """What was reconstructed, likewise."""
        return Results(self.settings, self.reconstruction)


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_finite(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data
