"""From the shards of a model to its numbers, always in the order of the images."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentae.evaluation.bootstrap import bootstrap_interval
from latentae.evaluation.frechet import GaussianStatistics, frechet_distance
from latentae.evaluation.kid import kernel_distance
from latentae.evaluation.latent_moments import LatentMoments
from latentae.evaluation.rate import CodeMeter
from latentae.evaluation.report.metric_info import METRICS
from latentae.evaluation.report.results import Value

_PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
_SMALL_SAMPLE = 5000


@dataclass
class Assembled:
    """The numbers of one model.

    Attributes:
        metrics: as in a report.
        values: metric → [N] float64, an image each.
        indices: [N] which images those are.
        latents: ``mean``, ``std``, ``kurtosis``, each a number per channel.
        remarks: what was left out, or must be read with care.
    """

    metrics: dict[str, Value]
    values: dict[str, Tensor]
    indices: Tensor
    latents: dict[str, list[float]]
    remarks: list[str]


def assemble(
    shards: Sequence[dict[str, Tensor]] | Iterable[dict[str, Tensor]],
    references: dict[str, Iterable[Tensor]],
    networks: dict[str, int],
) -> Assembled:
    """Joins what ``measure_block`` measured, block after block; features go through a file, not memory.

    Args:
        shards: in the order of the blocks; read once.
        references: network → features [n, d] of the originals of each block, in the same order; read once.
        networks: network → d.

    Raises:
        ValueError: there are no images.
    """
    with tempfile.TemporaryDirectory() as work:
        files = {name: _FeatureFile(Path(work) / f"{name}.f32", d) for name, d in networks.items()}
        rows: dict[str, list[Tensor]] = {}
        moments: LatentMoments | None = None
        codes: CodeMeter | None = None
        seconds = 0.0
        for shard in shards:
            seconds += shard["seconds"].item()
            for key, tensor in shard.items():
                kind, _, name = key.partition(".")
                if kind in ("value", "indices"):
                    rows.setdefault(name or kind, []).append(tensor)
                elif kind == "features":
                    files[name].append(tensor)
            if state := _part(shard, "moments."):
                moments = moments or LatentMoments(len(state["mean"]))
                moments.merge(LatentMoments.from_state(state))
            if state := _part(shard, "codes."):
                part = CodeMeter.from_state(state)
                codes = codes.merge(part) if codes else part
        values = {name: torch.cat(parts) for name, parts in rows.items()}
        indices = values.pop("indices", torch.zeros(0, dtype=torch.int64))
        if not len(indices):
            raise ValueError("there are no images to measure: none could be read")
        metrics, remarks = _means(values, len(indices))
        for name, file in files.items():
            distances, remark = _distances(name, file, references[name], Path(work))
            metrics |= distances
            remarks += [remark] if remark else []
    if codes is not None:
        rate = codes.result()
        metrics["bits_per_pixel"] = Value(rate.bits_per_pixel)
        metrics["entropy_bits_per_pixel"] = Value(rate.entropy_bits_per_pixel)
        metrics["codebook_usage"] = Value(rate.usage)
        metrics["codebook_perplexity"] = Value(rate.perplexity)
    metrics["images_per_second"] = Value(len(indices) / seconds)
    latents = {}
    if moments is not None:
        channel = moments.result()
        latents = {"mean": channel.mean, "std": channel.std, "kurtosis": channel.kurtosis}
    ordered = {name: metrics[name] for name in METRICS if name in metrics}
    return Assembled(ordered, values, indices, latents, remarks)


def percentiles(values: Tensor) -> dict[str, float]:
    """The 1st to 99th percentile over images, by their number as text."""
    quantiles = np.percentile(values.numpy(), _PERCENTILES)
    return {str(percent): float(value) for percent, value in zip(_PERCENTILES, quantiles, strict=True)}


def _means(values: dict[str, Tensor], images: int) -> tuple[dict[str, Value], list[str]]:
    metrics, remarks = {}, []
    for name, row in values.items():
        missing = int(row.isnan().sum())
        if missing and not name.startswith("cycle_"):
            label = METRICS[name].label
            remarks.append(f"{label} left out: {missing} of {images} images are too small for it")
            continue
        row = row[~row.isnan()]
        if torch.isfinite(row).all():
            interval = bootstrap_interval(row)
            metrics[name] = Value(row.mean().item(), interval.low, interval.high)
        else:
            metrics[name] = Value(row.mean().item())
    return metrics, remarks


def _distances(
    name: str, file: _FeatureFile, references: Iterable[Tensor], work: Path
) -> tuple[dict[str, Value], str | None]:
    """Fréchet distance, and for Inception the kernel distance, of one network's features."""
    originals = _FeatureFile(work / f"{name}-originals.f32", file.dimensions)
    for part in references:
        originals.append(part)
    ours, theirs = file.read(), originals.read()
    count = len(ours)
    metric = "rfid" if name == "inception" else "fd_vgg16"
    if count < 2:
        return {}, f"{METRICS[metric].label} left out: it needs two images or more"
    distance = Value(frechet_distance(_statistics(theirs), _statistics(ours)))
    metrics = {metric: distance}
    if name == "inception":
        kernel = kernel_distance(theirs, ours)
        low, high = kernel.value - kernel.deviation, kernel.value + kernel.deviation
        metrics["kid"] = Value(kernel.value, low, high)
    label = METRICS[metric].label
    if count <= file.dimensions:
        return metrics, (
            f"{label} is of {count} images and {file.dimensions} features: its covariances are singular and "
            "it is biased upwards; compare it only between models on these very images"
        )
    if count < _SMALL_SAMPLE:
        return metrics, f"{label} is of {count} images: biased upwards, compare it on these very images only"
    return metrics, None


def _statistics(features: NDArray[np.float32], rows: int = 1024) -> GaussianStatistics:
    statistics = GaussianStatistics(features.shape[1])
    for start in range(0, len(features), rows):
        statistics.add(torch.from_numpy(np.array(features[start : start + rows])))
    return statistics


def _part(shard: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in shard.items() if key.startswith(prefix)}


class _FeatureFile:
    """Rows of float32 numbers, appended to a file and read back as a map of it."""

    def __init__(self, path: Path, dimensions: int) -> None:
        self.path = path
        self.dimensions = dimensions
        path.touch()

    def append(self, features: Tensor) -> None:
        with self.path.open("ab") as file:
            file.write(features.float().numpy().tobytes())

    def read(self) -> NDArray[np.float32]:
        if not self.path.stat().st_size:
            return np.zeros((0, self.dimensions), np.float32)
        rows: NDArray[np.float32] = np.memmap(self.path, np.float32, "r")
        return rows.reshape(-1, self.dimensions)
