"""What has been measured so far, on disk: an interrupted evaluation goes on from there."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from latentae.devices import to_float64_on_cpu
from latentae.evaluation.blocks import Block
from latentae.evaluation.distances import FeatureFile, feature_distances
from latentae.evaluation.rate import CodeMeter, LatentMoments
from latentae.files import write_aside
from latentae.report.metrics import METRICS
from latentae.report.results import Value

_DRAWS_AT_A_TIME = 1 << 22
_PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
Shard = dict[str, Tensor]


class Shards:
    """One file a block, in a folder that only equal measurements share.

    Args:
        root: where such folders lie.
        name: for people.
        fingerprint: everything that the numbers depend on; another fingerprint is another folder.
    """

    def __init__(self, root: Path, name: str, fingerprint: str) -> None:
        self.folder = (
            root / f"{name}-{hashlib.sha256(fingerprint.encode(errors='surrogateescape')).hexdigest()[:16]}"
        )

    def path(self, number: int | str) -> Path:
        """The file of a block."""
        return self.folder / f"{number if isinstance(number, str) else f'{number:06d}'}.safetensors"

    def has(self, number: int | str) -> bool:
        """Whether a block is there, whole."""
        return self.load(number) is not None

    def load(self, number: int | str) -> dict[str, Tensor] | None:
        """A block's tensors; None where it is missing or damaged."""
        try:
            with safe_open(self.path(number), framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
        except (OSError, SafetensorError):
            return None

    def store(self, number: int | str, tensors: dict[str, Tensor]) -> None:
        """Writes a block aside and renames it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = save({name: tensor.contiguous() for name, tensor in tensors.items()})
        write_aside(self.path(number), content)


def content_sha256(block: Block) -> str:
    """A hash of a block's pixels."""
    digest = hashlib.sha256()
    for image in block.images:
        digest.update(f"{list(image.shape)}".encode())
        digest.update(image.contiguous().numpy().data)
    return digest.hexdigest()


def from_text(text: str) -> Tensor:
    """[n] uint8, the only thing that a shard can hold."""
    return torch.from_numpy(np.frombuffer(text.encode(errors="surrogateescape"), np.uint8).copy())


def to_text(tensor: Tensor) -> str:
    """What ``from_text`` was given."""
    return tensor.numpy().tobytes().decode(errors="surrogateescape")


def reference_cache() -> Path:
    """The folder in which all evaluations keep the features of originals."""
    root = (
        os.environ.get("LATENTAE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "latentae"
    )
    return Path(root).expanduser() / "reference_features"


@dataclass(frozen=True)
class Interval:
    """A confidence interval: [low, high]."""

    low: float
    high: float


def bootstrap_interval(
    values: Tensor, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> Interval:
    """The percentile bootstrap interval of the mean (Efron & Tibshirani 1993, chapter 13).

    It says how much the mean depends on which images were drawn, not how well they stand for other data.

    Args:
        values: [N], one an image; finite.
        confidence: the share of resampled means inside, in (0, 1).
        resamples: how many sets of N images are drawn with replacement.
        seed: of the draws.

    Raises:
        ValueError: no values, or a confidence outside (0, 1).
    """
    if values.ndim != 1 or not len(values):
        raise ValueError(f"values are [N] with N of 1 or more; got {list(values.shape)}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}, but must lie between 0 and 1")
    numbers = to_float64_on_cpu(values).numpy()
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    chunk = max(1, _DRAWS_AT_A_TIME // len(numbers))
    for start in range(0, resamples, chunk):
        stop = min(start + chunk, resamples)
        draws = generator.integers(len(numbers), size=(stop - start, len(numbers)))
        means[start:stop] = numbers[draws].mean(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(low), float(high))


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
