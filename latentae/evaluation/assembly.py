"""Measurements on disk, and the numbers of a report made from them, always in the order of the images.

An interrupted evaluation continues from the shards that are on disk.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import scipy.stats
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from latentae.devices import to_float64_on_cpu
from latentae.evaluation.blocks import Block
from latentae.evaluation.distances import FeatureFile, feature_distances, frechet_distance_of
from latentae.evaluation.rate import CodeMeter, LatentMoments
from latentae.evaluation.single_block import IFID_NETWORK
from latentae.files import cache_folder, write_aside
from latentae.report.results import METRICS, Value

_CONFIDENCE, _RESAMPLES, _DRAWS_AT_A_TIME = 0.95, 1000, 1 << 22
# The beginnings of metrics that some images do not have.
_PARTIAL = ("cycle_", "snr_")
_PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
Shard = dict[str, Tensor]


class Shards:
    """One file per block, in a folder that only equal measurements share.

    Args:
        root: parent of such folders.
        name: the readable part of the folder's name.
        fingerprint: everything that the numbers depend on. Another fingerprint gives another folder.
    """

    def __init__(self, root: Path, name: str, fingerprint: str) -> None:
        self.folder = (
            root / f"{name}-{hashlib.sha256(fingerprint.encode(errors='surrogateescape')).hexdigest()[:16]}"
        )

    def path(self, number: int | str) -> Path:
        return self.folder / f"{number if isinstance(number, str) else f'{number:06d}'}.safetensors"

    def has(self, number: int | str) -> bool:
        """Returns whether a block is complete; reads its header only, which knows the file's length."""
        try:
            with safe_open(self.path(number), framework="pt"):
                return True
        except (OSError, SafetensorError):
            return False

    def load(self, number: int | str) -> dict[str, Tensor] | None:
        """Returns a block's tensors; None if it is missing or damaged."""
        try:
            with safe_open(self.path(number), framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
        except (OSError, SafetensorError):
            return None

    def store(self, number: int | str, tensors: dict[str, Tensor]) -> None:
        """Writes a block, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = save({name: tensor.contiguous() for name, tensor in tensors.items()})
        write_aside(self.path(number), content)


def content_sha256(block: Block) -> str:
    """Returns a hash of a block's pixels and of the images' sizes."""
    digest = hashlib.sha256()
    for image in block.images:
        digest.update(f"{list(image.shape)}".encode())
        digest.update(image.contiguous().numpy().data)
    return digest.hexdigest()


def from_text(text: str) -> Tensor:
    """Returns text as [n] uint8, since a shard holds only tensors."""
    return torch.from_numpy(np.frombuffer(text.encode(errors="surrogateescape"), np.uint8).copy())


def to_text(tensor: Tensor) -> str:
    """Returns the text that ``from_text`` was given."""
    return tensor.numpy().tobytes().decode(errors="surrogateescape")


def reference_cache() -> Path:
    """Returns the folder in which all evaluations keep the features of originals."""
    return cache_folder() / "reference_features"


@dataclass
class Assembled:
    """The numbers of one model.

    Attributes:
        metrics: metric → value, in a report's order.
        values: metric → [N] float64, one value per image.
        indices: [N] of those images in the data.
        latents: ``mean``, ``std`` and ``kurtosis``, a number per channel each.
        unreadable: ``name: reason`` of each image that could not be measured.
        pixels_sha256: a hash of the pixels of all images.
        remarks: what was left out, and caveats.
        crops: the fields of ``WorstCrops`` of all images; empty without colours.
    """

    metrics: dict[str, Value]
    values: dict[str, Tensor]
    indices: Tensor
    latents: dict[str, list[float]]
    unreadable: list[str]
    pixels_sha256: str
    remarks: list[str]
    crops: dict[str, Tensor] = field(default_factory=dict)


def assemble(
    shards: Iterable[tuple[Shard, Shard]],
    networks: dict[str, int],
    work: Path,
    interpolated: Iterable[Tensor | None] | None = None,
) -> Assembled:
    """Joins the shards of all blocks into the numbers of one model; features go through files, not memory.

    Args:
        shards: pairs of the originals' and the model's shard, in the order of the blocks; read once.
        networks: network → d, the length of its features.
        work: folder for temporary files.
        interpolated: Inception's features [n, d] of images between latents, for each block; None if iFID is
            not measured. One that is None says that there are no latents of one size.

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
        if interpolated is not None:
            distances, remark = _ifid(joined, interpolated, Path(folder))
            metrics |= distances
            remarks += [remark] if remark else []
    metrics |= joined.rate()
    metrics["images_per_second"] = Value(len(indices) / joined.seconds)
    ordered = {name: metrics[name] for name in METRICS if name in metrics}
    digest = joined.digest.hexdigest()
    crops = {name: torch.cat(parts) for name, parts in joined.crops.items()}
    return Assembled(ordered, values, indices, joined.latents(), joined.unreadable, digest, remarks, crops)


def bootstrap_interval(values: Tensor, seed: int = 0) -> tuple[float, float]:
    """Returns the 95 % percentile bootstrap interval of a mean (Efron & Tibshirani 1993, chapter 13).

    It shows how much the mean depends on which images were drawn, not how well they represent other data.

    Args:
        values: [N] with N of 2 or more, one per image; finite.
        seed: of the 1000 resamples.
    """
    numbers = to_float64_on_cpu(values).numpy()
    result = scipy.stats.bootstrap(
        (numbers,),
        np.mean,
        n_resamples=_RESAMPLES,
        batch=max(1, _DRAWS_AT_A_TIME // len(numbers)),
        vectorized=True,
        confidence_level=_CONFIDENCE,
        method="percentile",
        random_state=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def mean_over_images(values: Tensor) -> Value:
    """Returns the mean of values [N], one per image, with its interval if it has one."""
    if len(values) > 1 and torch.isfinite(values).all():  # one image cannot be resampled
        return Value(values.mean().item(), *bootstrap_interval(values))
    return Value(values.mean().item())


def percentiles(values: Tensor) -> dict[str, float]:
    """Returns the 1st to 99th percentiles over images, such as ``{"50": 21.3}``; each is an image's value."""
    quantiles = np.percentile(values.numpy(), _PERCENTILES, method="inverted_cdf")
    return {str(percent): float(value) for percent, value in zip(_PERCENTILES, quantiles, strict=True)}


class _Joined:
    """Collects shards."""

    def __init__(self, networks: dict[str, int], folder: Path) -> None:
        self.features = {name: FeatureFile(folder / f"{name}.f32", d) for name, d in networks.items()}
        self.originals = {
            name: FeatureFile(folder / f"{name}-originals.f32", d) for name, d in networks.items()
        }
        self.values: dict[str, list[Tensor]] = {}
        self.crops: dict[str, list[Tensor]] = {}
        self.indices: list[Tensor] = []
        self.unreadable: list[str] = []
        self.digest = hashlib.sha256()
        self.seconds = 0.0
        self._moments: LatentMoments | None = None
        self._codes: CodeMeter | None = None

    def add(self, originals: Shard, measured: Shard) -> None:
        # Which images there are, and their values.
        self.indices.append(originals["indices"])
        self.digest.update(to_text(originals["content"]).encode())
        self.unreadable += to_text(originals["unreadable"]).splitlines()
        self.seconds += measured["seconds"].item()
        for name, row in _part(measured, "value.").items():
            self.values.setdefault(name, []).append(row)
        for name, row in _part(measured, "crop.").items():
            self.crops.setdefault(name, []).append(row)
        # Features go to files, and sums are merged.
        for name, file in self.features.items():
            if len(originals["indices"]):
                file.append(measured[f"features.{name}"])
                self.originals[name].append(originals[f"features.{name}"])
        if state := _part(measured, "moments."):
            self._moments = self._moments or LatentMoments(len(state["mean"]))
            self._moments.merge(LatentMoments.from_state(state))
        if state := _part(measured, "codes."):
            codes = CodeMeter.from_state(state)
            self._codes = self._codes or CodeMeter(codes.counts.shape[1], len(codes.counts))
            self._codes.merge(codes)

    @property
    def why_none(self) -> str:
        if not self.unreadable:
            return "the data are empty"
        return f"none of {len(self.unreadable)} could be read, such as {self.unreadable[0]}"

    def rate(self) -> dict[str, Value]:
        if self._codes is None:
            return {}
        return {name: Value(value) for name, value in vars(self._codes.result()).items()}

    def latents(self) -> dict[str, list[float]]:
        return {} if self._moments is None else vars(self._moments.result())


def _ifid(
    joined: _Joined, interpolated: Iterable[Tensor | None], folder: Path
) -> tuple[dict[str, Value], str | None]:
    """Returns iFID, or why it is left out."""
    originals = joined.originals[IFID_NETWORK]
    file = FeatureFile(folder / "interpolated.f32", originals.dimensions)
    for features in interpolated:
        if features is None:
            return {}, (
                "iFID left out: it needs two images or more with latents of one size; choose a protocol that "
                "crops images to one size"
            )
        file.append(features)
    if np.isnan(file[:]).any() or len(file) < 2:
        return {}, "iFID left out: images are too small for its network, or fewer than two"
    return {"ifid": Value(frechet_distance_of(originals, file))}, None


def _means(values: dict[str, Tensor], images: int) -> tuple[dict[str, Value], list[str]]:
    """Returns the mean of each metric with its interval, and why metrics are left out."""
    metrics, remarks = {}, []
    for name, row in values.items():
        missing = int(row.isnan().sum())
        if missing and not name.startswith(_PARTIAL):
            label = METRICS[name].label
            remarks.append(f"{label} left out: {missing} of {images} images are too small for it")
            continue
        row = row[~row.isnan()]
        if len(row):
            metrics[name] = mean_over_images(row)
    return metrics, remarks


def _part(shard: Shard, prefix: str) -> Shard:
    return {key.removeprefix(prefix): value for key, value in shard.items() if key.startswith(prefix)}
