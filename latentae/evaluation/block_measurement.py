"""Everything that is measured of one model on one block of images."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentae.devices import to_float64_on_cpu
from latentae.evaluation.blocks import Block, to_images
from latentae.evaluation.cycle import cycle_drift
from latentae.evaluation.features import FeatureExtractor, to_rgb
from latentae.evaluation.latent_moments import LatentMoments
from latentae.evaluation.measures import Measures
from latentae.evaluation.metrics import l1, psnr, ssim, ssim_and_ms_ssim, to_uint8
from latentae.evaluation.models import Subject
from latentae.evaluation.rate import CodeMeter, kl_bits_per_pixel

# Pixels a side that a metric needs.
_SSIM_MINIMUM, _MS_SSIM_MINIMUM = 11, 176
_LPIPS_MINIMUM = {"alex": 31, "vgg": 16}


@dataclass(frozen=True)
class Drift:
    """Which images go through a model again and again, and after how many rounds they are measured.

    Attributes:
        rounds: rising, 1 or more.
        indices: of the images in the data.
    """

    rounds: Sequence[int]
    indices: frozenset[int]


def measure_block(
    subject: Subject,
    block: Block,
    measures: Measures,
    device: torch.device,
    *,
    batch_size: int = 16,
    drift: Drift | None = None,
) -> dict[str, Tensor]:
    """What a shard of a model holds: float64 values [n] as ``value.METRIC``, features [n, d] as
    ``features.NETWORK``, the states of ``LatentMoments`` and ``CodeMeter`` as ``moments.*`` and ``codes.*``,
    and the ``seconds`` that the model took.

    What an image is too small for, or was not asked for, is NaN there.

    Args:
        batch_size: images of one size that go through the model together.
        drift: what is measured of drift; None leaves it out.

    Raises:
        ValueError: the model makes images of another size, or NaN.
    """
    measured = _Measured()
    for indices, batch in _batches(block, batch_size):
        images = to_images(batch.to(device))
        started = _now(device)
        output = subject(images)
        measured.seconds += _now(device) - started
        pixels = to_uint8(output.sample)
        rows = _pixel_values(to_images(pixels), images, measures)
        if output.mean is not None:
            rows["kl_bits_per_pixel"] = kl_bits_per_pixel(output.mean, output.log_variance, *images.shape[2:])
        if drift is not None:
            rows |= _drift(drift, indices, subject, images, output.sample)
        measured.add_values(rows)
        measured.add_features({name: _features(e, pixels) for name, e in measures.features.items()})
        if output.latents is not None:
            measured.add_latents(output.latents)
        if output.indices is not None and subject.num_codes is not None:
            measured.add_codes(output.indices, subject.num_codes, *images.shape[2:])
    return measured.tensors()


def reference_features(
    block: Block, extractor: FeatureExtractor, device: torch.device, batch_size: int = 16
) -> Tensor:
    """Features [n, d] of the originals of a block."""
    parts = [_features(extractor, pixels.to(device)) for _, pixels in _batches(block, batch_size)]
    return torch.cat([*parts, torch.zeros(0, extractor.dimensions)])


class _Measured:
    """What is known of the batches so far."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.rows: dict[str, list[Tensor]] = {}
        self.moments: LatentMoments | None = None
        self.codes: CodeMeter | None = None

    def add_values(self, rows: dict[str, Tensor]) -> None:
        for name, row in rows.items():
            self.rows.setdefault(f"value.{name}", []).append(to_float64_on_cpu(row))

    def add_features(self, features: dict[str, Tensor]) -> None:
        for name, rows in features.items():
            self.rows.setdefault(f"features.{name}", []).append(rows)

    def add_latents(self, latents: Tensor) -> None:
        self.moments = self.moments or LatentMoments(latents.shape[1])
        self.moments.add(latents.float())

    def add_codes(self, indices: Tensor, num_codes: int, height: int, width: int) -> None:
        depth = 1 if indices.ndim == 3 else indices.shape[1]
        self.codes = self.codes or CodeMeter(num_codes, depth)
        self.codes.add(indices, height, width)

    def tensors(self) -> dict[str, Tensor]:
        shard = {name: torch.cat(parts) for name, parts in self.rows.items()}
        for name, state in (("moments", self.moments), ("codes", self.codes)):
            if state is not None:
                shard |= {f"{name}.{key}": value for key, value in state.state().items()}
        shard["seconds"] = torch.tensor(self.seconds, dtype=torch.float64)
        return shard


def _pixel_values(reconstructions: Tensor, images: Tensor, measures: Measures) -> dict[str, Tensor]:
    side = min(images.shape[2:])
    rows = {"psnr": psnr(reconstructions, images), "l1": l1(reconstructions, images)}
    if side >= _MS_SSIM_MINIMUM:
        rows["ssim"], rows["ms_ssim"] = ssim_and_ms_ssim(reconstructions, images)
    else:
        large_enough = side >= _SSIM_MINIMUM
        rows["ssim"] = ssim(reconstructions, images) if large_enough else _missing(len(images))
        rows["ms_ssim"] = _missing(len(images))
    for name, distance in measures.lpips.items():
        large_enough = side >= _LPIPS_MINIMUM[distance.net]
        with torch.no_grad():
            rows[name] = distance(reconstructions, images) if large_enough else _missing(len(images))
    return rows


def _features(extractor: FeatureExtractor, pixels: Tensor) -> Tensor:
    """[B, d] on the CPU; NaN for images that are too small for the network."""
    if min(pixels.shape[2:]) < extractor.smallest_side:
        return torch.full((len(pixels), extractor.dimensions), float("nan"))
    return extractor(to_rgb(pixels)).cpu()


def _drift(
    drift: Drift, indices: Sequence[int], subject: Subject, images: Tensor, first: Tensor
) -> dict[str, Tensor]:
    """Each of the rounds' PSNR [B], NaN for the images that it is not measured of."""
    rows = {f"cycle_psnr_{rounds}": _missing(len(images)) for rounds in drift.rounds}
    chosen = [position for position, index in enumerate(indices) if index in drift.indices]
    if chosen:
        found = cycle_drift(lambda x: subject(x).sample, images[chosen], drift.rounds, first=first[chosen])
        for rounds, ratios in found.items():
            rows[f"cycle_psnr_{rounds}"][chosen] = ratios.cpu()
    return rows


def _batches(block: Block, batch_size: int) -> Iterator[tuple[list[int], Tensor]]:
    """[B, C, H, W] uint8 of neighbours of one size, so that the order stays; with their indices."""
    pairs = zip(block.indices, block.images, strict=True)
    for _, group in itertools.groupby(pairs, key=lambda pair: pair[1].shape):
        alike = list(group)
        for start in range(0, len(alike), batch_size):
            indices, images = zip(*alike[start : start + batch_size], strict=True)
            yield list(indices), torch.stack(images)


def _missing(count: int) -> Tensor:
    return torch.full((count,), float("nan"), dtype=torch.float64)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
