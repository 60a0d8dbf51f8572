"""Generates images with a trained denoiser through its pipeline, measures them, and draws them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTPipeline
from torch import Tensor

from latentae.data.seeding import GENERATED, GENERATED_LABELS, torch_generator
from latentae.evaluation.blocks import ImageBlocks
from latentae.evaluation.features import FeatureExtractor
from latentae.evaluation.metrics import to_images, to_uint8
from latentae.evaluation.models import NamedModel
from latentae.models.interpolation import slerp_or_lerp
from latentae.probe.features import (
    Features,
    Nearest,
    extract_features,
    feature_distance,
    find_nearest,
    measure_memorisation,
    real_distance,
    real_images,
    reconstruct_images,
)
from latentae.probe.request import ProbeImages, ProbeRequest
from latentae.report.grids import picture_grid, save_png

DISTANCES = {"vgg16": "fd_vgg16", "inception": "fid"}
"""Network → prefix of the names of its distances."""

_GRID_ROWS, _GRID_COLUMNS = 8, 8
_NEIGHBOURS = 8
_BATCH = 32


def sample_images(
    pipeline: DiTPipeline,
    labels: Sequence[int],
    *,
    seed: int,
    steps: int,
    guidance_scale: float = 1.0,
    batch_size: int = 64,
) -> Iterator[Tensor]:
    """Yields batches of images [B, C, H, W] uint8 on the CPU, from calls of the pipeline.

    Image i is a function of (seed, i, its label). The batch size changes it by rounding only.

    Args:
        labels: one per image.
        steps: of the sampler.
        guidance_scale: of classifier-free guidance; 1 turns it off.
        batch_size: images at a time.
    """
    for start in range(0, len(labels), batch_size):
        chosen = list(labels[start : start + batch_size])
        images = pipeline(
            class_labels=chosen,
            generator=[torch_generator(seed, GENERATED, start + place) for place in range(len(chosen))],
            guidance_scale=guidance_scale,
            num_inference_steps=steps,
            output_type="pt",
        ).images
        yield to_uint8(images.float() * 2 - 1).cpu()


def initial_noise(pipeline: DiTPipeline, seed: int, index: int) -> Tensor:
    """Returns the noise [c, h, w] from which ``sample_images`` generates the image of this index."""
    config = pipeline.transformer.config
    shape = (1, config.in_channels, config.sample_size, config.sample_size)
    return torch.randn(shape, generator=torch_generator(seed, GENERATED, index))[0]


@torch.no_grad()
def denoise(pipeline: DiTPipeline, noise: Tensor, labels: Sequence[int], steps: int) -> Tensor:
    """Generates images [B, C, H, W] uint8 on the CPU from noise [B, c, h, w], without guidance.

    A ``DiTPipeline`` draws its own noise, so it cannot generate from the noise between two images. Otherwise
    this takes the same steps.
    """
    denoiser, scheduler = pipeline.transformer, pipeline.scheduler
    device = pipeline.device
    latents, class_labels = noise.to(device), torch.tensor(labels, device=device)
    scheduler.set_timesteps(steps)
    for timestep in scheduler.timesteps:
        timesteps = timestep.expand(len(latents)).to(device)
        predicted = denoiser(latents, timestep=timesteps, class_labels=class_labels).sample
        latents = scheduler.step(predicted, timestep, latents).prev_sample
    return decode_latents(pipeline, latents)


@torch.no_grad()
def decode_latents(pipeline: DiTPipeline, latents: Tensor) -> Tensor:
    """Decodes a denoiser's latents to images [B, C, H, W] uint8 on the CPU, as the pipeline does."""
    vae = pipeline.vae
    images = vae.decode(latents.to(pipeline.device) / vae.config.scaling_factor).sample
    return to_uint8(images.float().clamp(-1, 1)).cpu()


def noise_between(first: Tensor, second: Tensor, count: int) -> Tensor:
    """Returns [count, *shape]: points from one tensor to another of the same shape, both ends included.

    They lie on the arc between the two: normal noise stays as likely a draw there, which it does not on a
    straight line. Between ends in opposite directions there is no shortest arc, and the line is straight.
    """
    return slerp_or_lerp(first, second, torch.linspace(0, 1, count, dtype=torch.float64)).to(first)


def interpolate_samples(
    pipeline: DiTPipeline, labels: list[int], *, seed: int, columns: int, steps: int
) -> Tensor:
    """Generates images [rows, columns, C, H, W] uint8: row r goes from sample 2r to sample 2r + 1.

    Args:
        labels: of each row; both its ends have the same label.
        columns: images per row, both ends included; two or more.
    """
    rows = []
    for row, label in enumerate(labels):
        first, second = (initial_noise(pipeline, seed, 2 * row + end) for end in (0, 1))
        noise = noise_between(first, second, columns)
        rows.append(denoise(pipeline, noise, [label] * columns, steps))
    return torch.stack(rows)


def draw_labels(labels: Tensor | None, count: int, seed: int) -> list[int]:
    """Draws one label per generated image from the labels of the training images.

    Args:
        labels: int64 [n] of the training images; None: there are no classes, and all labels are 0.
    """
    if labels is None:
        return [0] * count
    drawn = torch.randint(len(labels), (count,), generator=torch_generator(seed, GENERATED_LABELS))
    return [int(label) for label in labels[drawn]]


@dataclass(frozen=True)
class Generated:
    """Measurements of a model's generated images, by name, and the seconds per image."""

    metrics: dict[str, float]
    sample_seconds: float


@dataclass
class GenerationEvaluator:
    """Generates images through pipelines, and measures them against the training images.

    Attributes:
        images: the real ones.
        extractors: network → its features.
        real: the features of ``images.reference``.
        indices: the positions of these among the training images.
        request: the number of images, the options of the sampler, and whether images are RGBA.
        device: of the networks.
    """

    images: ProbeImages
    extractors: dict[str, FeatureExtractor]
    real: Features
    indices: list[int]
    request: ProbeRequest
    device: torch.device

    def evaluate(
        self, pipeline: DiTPipeline, subject: NamedModel, labels: Sequence[int], folder: Path
    ) -> Generated:
        """Generates an image per label, measures, and writes three grids of images into ``folder``.

        These are ``samples.png``, ``neighbours.png`` and ``interpolations.png``.
        """
        sampling: Any = {"seed": self.request.seed, "steps": self.request.sampling_steps}
        scale = self.request.guidance_scale
        started = time.monotonic()
        batches = sample_images(pipeline, labels, guidance_scale=scale, batch_size=_BATCH, **sampling)
        images = torch.cat(list(batches))
        seconds = (time.monotonic() - started) / len(images)
        alpha = self.request.alpha
        _save_grid(images[: _GRID_ROWS * _GRID_COLUMNS], folder / "samples.png", alpha=alpha)
        rows = list(labels[: min(4, len(images) // 2)])
        between = interpolate_samples(pipeline, rows, columns=_GRID_COLUMNS, **sampling)
        _save_grid(between.flatten(0, 1), folder / "interpolations.png", alpha=alpha)
        return Generated(self._measure(pipeline, subject, images, folder), seconds)

    def _measure(
        self, pipeline: DiTPipeline, subject: NamedModel, images: Tensor, folder: Path
    ) -> dict[str, float]:
        # Features: of samples, of reconstructed training and held-out images, and of decoded noise
        count, real = len(images), self.images
        channels, alpha = real.reference.channels, real.reference.alpha
        copies = ImageBlocks(real.training, real.protocol, channels, count, alpha=alpha)
        copied, held_out = (
            self._features(reconstruct_images(subject, real_images(blocks), self.device))
            for blocks in (copies, real.measured)
        )
        samples = self._features(images.split(_BATCH))
        noise = self._features(self._decoded_noise(pipeline, count))

        # Distances to the real images
        metrics: dict[str, float] = {}
        for network, features in self.real.items():
            name = DISTANCES[network]
            metrics[f"{name}_generated"] = feature_distance(samples[network], features)
            metrics[f"{name}_reconstructed"] = feature_distance(copied[network], features)
            metrics[f"{name}_real"] = real_distance(features, count, self.request.seed)
            metrics[f"{name}_noise"] = feature_distance(noise[network], features)
        if not self.real:
            return metrics

        # The nearest training images, by the first network
        network = next(name for name in DISTANCES if name in self.real)
        near, *others = (
            find_nearest(found[network], self.real[network]) for found in (samples, held_out, copied)
        )
        found = measure_memorisation(near, *others)
        self._save_neighbours(images, near, folder)
        return metrics | {
            "nearest_samples": found.samples,
            "nearest_held_out": found.held_out,
            "nearest_copies": found.copies,
            "copied_share": found.copied_share,
        }

    def _features(self, batches: Sequence[Tensor] | Iterator[Tensor]) -> Features:
        return extract_features(batches, self.extractors, self.device, alpha=self.request.alpha)

    def _decoded_noise(self, pipeline: DiTPipeline, count: int) -> Iterator[Tensor]:
        """Yields batches of decoded noise: the images of a denoiser that has learned nothing."""
        for start in range(0, count, _BATCH):
            indices = range(start, min(start + _BATCH, count))
            noise = [initial_noise(pipeline, self.request.seed, index) for index in indices]
            yield decode_latents(pipeline, torch.stack(noise))

    def _save_neighbours(self, images: Tensor, near: Nearest, folder: Path) -> None:
        """Writes the samples nearest to training images, with these images below them."""
        chosen = near.distances.argsort()[:_NEIGHBOURS].tolist()
        originals = [self.images.reference.prepare(self.indices[int(near.positions[i])]) for i in chosen]
        grid = torch.stack([to_images(images[chosen]), torch.stack(originals)])
        save_png(picture_grid(grid, alpha=self.request.alpha), folder / "neighbours.png")


def _save_grid(images: Tensor, path: Path, *, alpha: bool) -> None:
    """Writes images [N, C, H, W] uint8 in rows of eight; the last row is filled with white.

    With ``alpha`` RGBA images are shown on a checkerboard.
    """
    rows = -(-len(images) // _GRID_COLUMNS)
    tiles = to_images(images)
    missing = rows * _GRID_COLUMNS - len(tiles)
    tiles = torch.cat([tiles, torch.ones(missing, *tiles.shape[1:])])
    save_png(picture_grid(tiles.unflatten(0, (rows, _GRID_COLUMNS)), alpha=alpha), path)
