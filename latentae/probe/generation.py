"""What a trained denoiser generates through its pipeline, measured and shown."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DiTPipeline
from torch import Tensor

from latentae.evaluation.blocks import ImageBlocks, to_images
from latentae.evaluation.features import FeatureExtractor
from latentae.evaluation.subject import Subject
from latentae.probe.features import Features, distance, features_of, floor, real_images, reconstructed
from latentae.probe.images import ProbeImages
from latentae.probe.interpolation import interpolations
from latentae.probe.memorisation import Nearest, memorisation, nearest
from latentae.probe.randomness import generator
from latentae.probe.request import ProbeRequest
from latentae.probe.sampling import decode_latents, picture_noise, sample_images
from latentae.report.grids import picture_grid, save_png

DISTANCES = {"vgg16": "fd_vgg16", "inception": "fid"}
"""Network → how the names of its distances begin."""

_GRID_ROWS, _GRID_COLUMNS = 8, 8
_NEIGHBOURS = 8
_BATCH = 32


@dataclass(frozen=True)
class Generated:
    """What was generated for a model.

    Attributes:
        metrics: by name.
        sample_seconds: a picture took.
    """

    metrics: dict[str, float]
    sample_seconds: float


@dataclass
class Judge:
    """Measures what pipelines generate against the training images.

    Attributes:
        images: real ones.
        extractors: network → its features.
        real: the features of ``images.reference``.
        indices: which of the training images these are of.
        request: how much is generated, and how.
        device: where networks run.
    """

    images: ProbeImages
    extractors: dict[str, FeatureExtractor]
    real: Features
    indices: list[int]
    request: ProbeRequest
    device: torch.device

    def __call__(
        self, pipeline: DiTPipeline, subject: Subject, labels: Sequence[int], folder: Path
    ) -> Generated:
        """Generates, measures, and writes ``samples.png``, ``neighbours.png`` and ``interpolations.png``.

        Args:
            labels: one a picture.
            folder: where the pictures go.
        """
        request = self.request
        started = time.monotonic()
        pictures = torch.cat(
            list(
                sample_images(
                    pipeline,
                    labels,
                    seed=request.seed,
                    steps=request.sampling_steps,
                    guidance_scale=request.guidance_scale,
                    batch_size=_BATCH,
                )
            )
        )
        seconds = (time.monotonic() - started) / len(pictures)
        _save(pictures[: _GRID_ROWS * _GRID_COLUMNS], _GRID_COLUMNS, folder / "samples.png")
        rows = min(4, len(pictures) // 2)
        between = interpolations(
            pipeline, list(labels[:rows]), seed=request.seed, columns=8, steps=request.sampling_steps
        )
        _save(between.flatten(0, 1), 8, folder / "interpolations.png")
        metrics = self._measure(pipeline, subject, pictures, folder)
        return Generated(metrics, seconds)

    def _measure(
        self, pipeline: DiTPipeline, subject: Subject, pictures: Tensor, folder: Path
    ) -> dict[str, float]:
        count = len(pictures)
        copies = ImageBlocks(
            self.images.training, self.images.protocol, self.images.reference.channels, count
        )
        samples = self._features(pictures.split(_BATCH))
        again = self._features(reconstructed(subject, real_images(copies), self.device))
        held_out = self._features(reconstructed(subject, real_images(self.images.measured), self.device))
        noise = self._features(self._decoded_noise(pipeline, count))
        metrics: dict[str, float] = {}
        for network, real in self.real.items():
            name = DISTANCES[network]
            metrics[f"{name}_generated"] = distance(samples[network], real)
            metrics[f"{name}_reconstructed"] = distance(again[network], real)
            metrics[f"{name}_real"] = floor(real, count, self.request.seed)
            metrics[f"{name}_noise"] = distance(noise[network], real)
        if not self.real:
            return metrics
        network = next(name for name in DISTANCES if name in self.real)
        near = nearest(samples[network], self.real[network])
        found = memorisation(
            near,
            nearest(held_out[network], self.real[network]),
            nearest(again[network], self.real[network]),
        )
        self._show_neighbours(pictures, near, folder)
        return metrics | {
            "nearest_samples": found.samples,
            "nearest_held_out": found.held_out,
            "nearest_copies": found.copies,
            "copied_share": found.copied_share,
        }

    def _features(self, batches: Sequence[Tensor] | Iterator[Tensor]) -> Features:
        return features_of(batches, self.extractors, self.device)

    def _decoded_noise(self, pipeline: DiTPipeline, count: int) -> Iterator[Tensor]:
        """What the decoder makes of noise: what a denoiser that knows nothing would give."""
        for start in range(0, count, _BATCH):
            numbers = range(start, min(start + _BATCH, count))
            noise = [picture_noise(pipeline, self.request.seed, number) for number in numbers]
            yield decode_latents(pipeline, torch.stack(noise))

    def _show_neighbours(self, pictures: Tensor, near: Nearest, folder: Path) -> None:
        """The samples nearest to training images above these."""
        chosen = near.distances.argsort()[:_NEIGHBOURS].tolist()
        originals = [self.images.reference.prepare(self.indices[int(near.positions[i])]) for i in chosen]
        grid = torch.stack([to_images(pictures[chosen]), torch.stack(originals)])
        save_png(picture_grid(grid), folder / "neighbours.png")


def draw_labels(labels: Tensor | None, count: int, seed: int) -> list[int]:
    """A label for each picture: those of random training images, so that classes are as frequent as there.

    Args:
        labels: int64 [n] of the training images; None: there are no classes, and all get 0.
    """
    if labels is None:
        return [0] * count
    drawn = torch.randint(len(labels), (count,), generator=generator(seed, "labels"))
    return [int(label) for label in labels[drawn]]


def _save(pictures: Tensor, columns: int, path: Path) -> None:
    """[N, C, H, W] uint8 in rows; the last one is filled with white."""
    rows = -(-len(pictures) // columns)
    images = to_images(pictures)
    missing = rows * columns - len(images)
    images = torch.cat([images, torch.ones(missing, *images.shape[1:])])
    save_png(picture_grid(images.unflatten(0, (rows, columns))), path)
