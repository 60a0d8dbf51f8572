"""From the shards of a model to its numbers, always in the order of the images."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latentae.evaluation.bootstrap import bootstrap_interval
from latentae.evaluation.distances import FeatureFile, feature_distances
from latentae.evaluation.latent_moments import LatentMoments
from latentae.evaluation.rate import CodeMeter
from latentae.evaluation.shards import to_text
from latentae.report.metrics import METRICS
from latentae.report.results import Value

_PERCENTILES = (1, 5, 25, 50, 75, 95, 99)

Shard = dict[str, Tensor]


@dataclass
class Assembled:
    """The numbers of one model.

    Attributes:
        metrics: as in a report.
        values: metric → [N] float64, an image each.
        indices: [N] which images those are.
        latents: ``mean``, ``std``, ``kurtosis``, each a number per channel.
        unreadable: ``name: reason`` of each image that could not be measured.
        pixels_sha256: a hash of all pixels that went in.
        remarks: what was left out, or must be read with care.
    """

    metrics: dict[str, Value]
    values: dict[str, Tensor]
    indices: Tensor
    latents: dict[str, list[float]]
    unreadable: list[str]
    pixels_sha256: str
    remarks: list[str]


def assemble(shards: Iterable[tuple[Shard, Shard]], networks: dict[str, int], work: Path) -> Assembled:
    """Joins what was measured, block after block; features go through files, not memory.

    Args:
        shards: of the originals and of the model, in the order of the blocks; read once.
        networks: network → d, the length of its features.
        work: where the files lie meanwhile.

    Raises:
        ValueError: there are no images.
    """
    with tempfile.TemporaryDirectory(dir=work) as folder:
        joined = _Joined(networks, Path(folder))
        for originals, measured in shards:
            joined.add(originals, measured)
        indices = torch.cat([*joined.indices, torch.zeros(0, dtype=torch.int64)])
        if not len(indices):
            raise ValueError(f"there are no images to measure: {joined.why_none}")
        values = {name: torch.cat(parts) for name, parts in joined.values.items()}
        metrics, remarks = _means(values, len(indices))
        for name in networks:
            distances, remark = feature_distances(name, joined.originals[name], joined.features[name])
            metrics |= distances
            remarks += [remark] if remark else []
    metrics |= joined.rate()
    metrics["images_per_second"] = Value(len(indices) / joined.seconds)
    ordered = {name: metrics[name] for name in METRICS if name in metrics}
    digest = joined.digest.hexdigest()
    return Assembled(ordered, values, indices, joined.latents(), joined.unreadable, digest, remarks)


def percentiles(values: Tensor) -> dict[str, float]:
    """The 1st to 99th percentile over images, by their number as text; each is the value of an image."""
    quantiles = np.percentile(values.numpy(), _PERCENTILES, method="inverted_cdf")
    return {str(percent): float(value) for percent, value in zip(_PERCENTILES, quantiles, strict=True)}


class _Joined:
    """The shards so far."""

    def __init__(self, networks: dict[str, int], folder: Path) -> None:
        self.features = {name: FeatureFile(folder / f"{name}.f32", d) for name, d in networks.items()}
        self.originals = {
            name: FeatureFile(folder / f"{name}-originals.f32", d) for name, d in networks.items()
        }
        self.values: dict[str, list[Tensor]] = {}
        self.indices: list[Tensor] = []
        self.unreadable: list[str] = []
        self.digest = hashlib.sha256()
        self.seconds = 0.0
        self._moments: LatentMoments | None = None
        self._codes: CodeMeter | None = None

    def add(self, originals: Shard, measured: Shard) -> None:
        self.indices.append(originals["indices"])
        self.digest.update(to_text(originals["content"]).encode())
        self.unreadable += to_text(originals["unreadable"]).splitlines()
        self.seconds += measured["seconds"].item()
        for name, row in _part(measured, "value.").items():
            self.values.setdefault(name, []).append(row)
        for name, file in self.features.items():
            if len(originals["indices"]):
                file.append(measured[f"features.{name}"])
                self.originals[name].append(originals[f"features.{name}"])
        if state := _part(measured, "moments."):
            self._moments = self._moments or LatentMoments(len(state["mean"]))
            self._moments.merge(LatentMoments.from_state(state))
        if state := _part(measured, "codes."):
            codes = CodeMeter.from_state(state)
            self._codes = self._codes.merge(codes) if self._codes else codes

    @property
    def why_none(self) -> str:
        if not self.unreadable:
            return "the data are empty"
        return f"none of {len(self.unreadable)} could be read, such as {self.unreadable[0]}"

    def rate(self) -> dict[str, Value]:
        if self._codes is None:
            return {}
        rate = self._codes.result()
        return {
            "bits_per_pixel": Value(rate.bits_per_pixel),
            "entropy_bits_per_pixel": Value(rate.entropy_bits_per_pixel),
            "codebook_usage": Value(rate.usage),
            "codebook_perplexity": Value(rate.perplexity),
        }

    def latents(self) -> dict[str, list[float]]:
        if self._moments is None:
            return {}
        channel = self._moments.result()
        return {"mean": channel.mean, "std": channel.std, "kurtosis": channel.kurtosis}


def _means(values: dict[str, Tensor], images: int) -> tuple[dict[str, Value], list[str]]:
    metrics, remarks = {}, []
    for name, row in values.items():
        missing = int(row.isnan().sum())
        if missing and not name.startswith("cycle_"):
            label = METRICS[name].label
            remarks.append(f"{label} left out: {missing} of {images} images are too small for it")
            continue
        row = row[~row.isnan()]
        if not len(row):
            continue
        if len(row) > 1 and torch.isfinite(row).all():  # of one image nothing can be drawn anew
            interval = bootstrap_interval(row)
            metrics[name] = Value(row.mean().item(), interval.low, interval.high)
        else:
            metrics[name] = Value(row.mean().item())
    return metrics, remarks


def _part(shard: Shard, prefix: str) -> Shard:
    return {key.removeprefix(prefix): value for key, value in shard.items() if key.startswith(prefix)}
