"""Everything that is measured of one model on one block of images."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from latentae.evaluation.blocks import Block
from latentae.evaluation.cycle import cycle_drift
from latentae.evaluation.features import FeatureExtractor, to_rgb
from latentae.evaluation.latent_moments import LatentMoments
from latentae.evaluation.measures import Measures
from latentae.evaluation.metrics import l1, ms_ssim, psnr, ssim, to_uint8
from latentae.evaluation.rate import CodeMeter, kl_bits_per_pixel
from latentae.evaluation.subject import Subject

_PIXEL_METRICS = {"psnr": (psnr, 1), "l1": (l1, 1), "ssim": (ssim, 11), "ms_ssim": (ms_ssim, 176)}
_LPIPS_MINIMUM = {"alex": 31, "vgg": 16}


def measure_block(
    subject: Subject,
    block: Block,
    measures: Measures,
    device: torch.device,
    *,
    batch_size: int = 16,
    cycle_rounds: Sequence[int] = (),
) -> dict[str, Tensor]:
    """What a shard holds: float64 values [n] as ``value.METRIC``, features [n, d] as ``features.NETWORK``,
    and the states of ``LatentMoments`` and ``CodeMeter`` as ``moments.*`` and ``codes.*``.

    A metric that an image is too small for is NaN there.

    Args:
        batch_size: images of one size that go through the model together.
        cycle_rounds: rounds after which drift is measured; empty leaves it out.
    """
    values: dict[str, list[Tensor]] = {}
    features: dict[str, list[Tensor]] = {name: [] for name in measures.features}
    moments: LatentMoments | None = None
    codes: CodeMeter | None = None
    seconds = 0.0
    for batch in _batches(block.images, batch_size):
        images = batch.to(device)
        height, width = images.shape[2:]
        started = _now(device)
        output = subject(images)
        seconds += _now(device) - started
        pixels = to_uint8(output.sample)
        shown = pixels.float() / 127.5 - 1
        rows = _pixel_values(shown, images, measures)
        if output.mean is not None:
            rows["kl_bits_per_pixel"] = kl_bits_per_pixel(output.mean, output.log_variance, height, width)
        if cycle_rounds:
            drift = cycle_drift(lambda x: subject(x).sample, images, cycle_rounds, first=output.sample)
            rows |= {f"cycle_psnr_{rounds}": ratio for rounds, ratio in drift.items()}
        for name, row in rows.items():
            values.setdefault(name, []).append(row.double().cpu())
        for name, extractor in measures.features.items():
            features[name].append(extractor(to_rgb(pixels)).cpu())
        if output.latents is not None:
            moments = moments or LatentMoments(output.latents.shape[1])
            moments.add(output.latents.float())
        if output.indices is not None and subject.num_codes is not None:
            depth = 1 if output.indices.ndim == 3 else output.indices.shape[1]
            codes = codes or CodeMeter(subject.num_codes, depth)
            codes.add(output.indices, height, width)
    shard = {f"value.{name}": torch.cat(parts) for name, parts in values.items()}
    shard |= {f"features.{name}": torch.cat(parts) for name, parts in features.items() if parts}
    shard |= {} if moments is None else {f"moments.{key}": value for key, value in moments.state().items()}
    shard |= {} if codes is None else {f"codes.{key}": value for key, value in codes.state().items()}
    shard["seconds"] = torch.tensor(seconds, dtype=torch.float64)
    shard["indices"] = torch.tensor(block.indices, dtype=torch.int64)
    return shard


def reference_features(
    block: Block, extractor: FeatureExtractor, device: torch.device, batch_size: int = 16
) -> Tensor:
    """Features [n, d] of the originals of a block."""
    parts = [
        extractor(to_rgb(to_uint8(batch.to(device)))).cpu() for batch in _batches(block.images, batch_size)
    ]
    return torch.cat(parts) if parts else torch.zeros(0, extractor.dimensions)


def _pixel_values(reconstructions: Tensor, images: Tensor, measures: Measures) -> dict[str, Tensor]:
    side = min(images.shape[2:])
    missing = torch.full((len(images),), float("nan"), dtype=torch.float64)
    rows = {
        name: metric(reconstructions, images) if side >= smallest else missing
        for name, (metric, smallest) in _PIXEL_METRICS.items()
    }
    for name, distance in measures.lpips.items():
        large_enough = side >= _LPIPS_MINIMUM[distance.net]
        rows[name] = distance(reconstructions, images) if large_enough else missing
    return rows


def _batches(images: Sequence[Tensor], batch_size: int) -> Iterator[Tensor]:
    """Neighbours of one size together, so that the order stays."""
    for _, group in itertools.groupby(images, key=lambda image: image.shape):
        alike = list(group)
        for start in range(0, len(alike), batch_size):
            yield torch.stack(alike[start : start + batch_size])


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
