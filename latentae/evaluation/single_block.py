"""Measures one model on one block of images: a value per image and metric, features, sums over latents."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentae.devices import to_float64_on_cpu
from latentae.evaluation.blocks import Block
from latentae.evaluation.colour import WorstCrops, channel_shifts, colour_difference, worst_crops
from latentae.evaluation.features import FeatureExtractor, Measures, to_rgb
from latentae.evaluation.metrics import (
    band_snr,
    cycle_drift,
    downscaled_psnr,
    l1,
    psnr,
    ssim,
    ssim_and_ms_ssim,
    to_images,
    to_uint8,
)
from latentae.evaluation.models import NamedModel
from latentae.evaluation.rate import CodeMeter, LatentMoments, kl_bits_per_pixel
from latentae.evaluation.transparency import (
    composite_psnr,
    composites,
    downscaled_composite_psnr,
    over_backgrounds,
    transparent_psnr,
)
from latentae.losses.perceptual import MINIMUM_SIZE

# Pixels per side that a metric needs.
_SSIM_MINIMUM, _MS_SSIM_MINIMUM = 11, 176
IFID_NETWORK = "inception"
"""The network whose features are compared for iFID."""


@dataclass(frozen=True)
class Drift:
    """The rounds (1 or more, rising) after which some images, by their indices in the data, are measured."""

    rounds: Sequence[int]
    indices: frozenset[int]


def measure_block(
    model: NamedModel,
    block: Block,
    measures: Measures,
    device: torch.device,
    *,
    batch_size: int = 16,
    drift: Drift | None = None,
    keep: list[Tensor] | None = None,
    alpha: bool = False,
    with_latents: bool = False,
) -> dict[str, Tensor]:
    """Measures a model on a block of images.

    A value is NaN where the image is too small for the metric, or the metric was not asked for.

    Args:
        batch_size: images of one size that go through the model together.
        drift: the images whose drift is measured; None measures none.
        keep: receives the unscaled latents [b, c, h, w] of each batch.
        alpha: whether images are RGBA, which are measured as composites.
        with_latents: whether the latents are returned too, if all are of one size.

    Returns:
        a shard: float64 values [n] as ``value.METRIC``, features [n, d] as ``features.NETWORK``, the fields
        of ``WorstCrops`` as ``crop.*``, the states of ``LatentMoments`` and ``CodeMeter`` as ``moments.*``
        and ``codes.*``, and the model's ``seconds``. With latents also ``latents`` [n, c, h, w] in float32,
        and ``size``, the images' (H, W).

    Raises:
        ValueError: the model makes images of another size, or NaN.
    """
    rows: dict[str, list[Tensor]] = {}
    moments: LatentMoments | None = None
    codes: CodeMeter | None = None
    seconds = 0.0
    latents: list[Tensor] = []
    for indices, batch in batches(block, batch_size):
        # Reconstruct.
        images = to_images(batch.to(device))
        started = _now(device)
        output = model(images)
        seconds += _now(device) - started

        # One value per image and metric, and the features.
        pixels = to_uint8(output.sample)
        compare = transparent_values if alpha else pixel_values
        values = compare(to_images(pixels), images, measures)
        shown = to_images(pixels)
        detail, crops = _detail_values(composites(shown, images) if alpha else [(shown, images)])
        values |= detail
        if model.upscale > 1:
            small_psnr = downscaled_composite_psnr if alpha else downscaled_psnr
            values["psnr_downscaled"] = small_psnr(output.sample, images, model.upscale)
        if output.mean is not None:
            values["kl_bits_per_pixel"] = kl_bits_per_pixel(
                output.mean, output.log_variance, *images.shape[2:]
            )
        if drift is not None:
            measure = composite_psnr if alpha else psnr
            values |= _drift(drift, indices, model, images, output.sample, measure)
        for name, value in values.items():
            rows.setdefault(f"value.{name}", []).append(to_float64_on_cpu(value))
        for name, value in vars(crops).items() if crops is not None else ():
            rows.setdefault(f"crop.{name}", []).append(value.cpu())
        seen = over_backgrounds(pixels, images) if alpha else pixels
        for name, extractor in measures.features.items():
            rows.setdefault(f"features.{name}", []).append(_features(extractor, seen))

        # The sums over latents and codes.
        if output.latents is not None:
            moments = moments or LatentMoments(output.latents.shape[1])
            moments.add(output.latents.float())
            latents += [output.latents.float().cpu()] if with_latents else []
            if keep is not None:
                keep.append(output.latents)
        if output.indices is not None and model.num_codes is not None:
            depth = 1 if output.indices.ndim == 3 else output.indices.shape[1]
            codes = codes or CodeMeter(model.num_codes, depth)
            codes.add(output.indices, *images.shape[2:])

    shard = {name: torch.cat(parts) for name, parts in rows.items()}
    if len({part.shape[1:] for part in latents}) == 1:
        shard |= {"latents": torch.cat(latents), "size": torch.tensor(block.images[0].shape[1:])}
    for name, sums in (("moments", moments), ("codes", codes)):
        if sums is not None:
            shard |= {f"{name}.{key}": value for key, value in sums.state().items()}
    return {**shard, "seconds": torch.tensor(seconds, dtype=torch.float64)}


def reference_features(
    block: Block,
    extractor: FeatureExtractor,
    device: torch.device,
    batch_size: int = 16,
    *,
    alpha: bool = False,
) -> Tensor:
    """Returns features [n, d] of the originals of a block, of RGBA images with ``alpha`` over backgrounds."""
    parts = []
    for _, batch in batches(block, batch_size):
        pixels = batch.to(device)
        if alpha:
            pixels = over_backgrounds(pixels, to_images(pixels))
        parts.append(_features(extractor, pixels))
    return torch.cat([*parts, torch.zeros(0, extractor.dimensions)])


def interpolated_features(
    model: NamedModel,
    latents: Tensor,
    size: tuple[int, int],
    extractor: FeatureExtractor,
    device: torch.device,
    batch_size: int = 16,
) -> dict[str, Tensor]:
    """Decodes unscaled latents [n, c, h, w] to images of a size (H, W); returns ``features`` [n, d]."""
    decoded = (model.decode(part.to(device), size) for part in latents.split(batch_size) if len(part))
    parts = [_features(extractor, to_uint8(images)) for images in decoded]
    return {"features": torch.cat([*parts, torch.zeros(0, extractor.dimensions)])}


def pixel_values(reconstructions: Tensor, images: Tensor, measures: Measures) -> dict[str, Tensor]:
    """Returns metric → [B] of the metrics that compare each reconstruction with its image."""
    side = min(images.shape[2:])
    rows = {"psnr": psnr(reconstructions, images), "l1": l1(reconstructions, images)}
    if side >= _MS_SSIM_MINIMUM:
        rows["ssim"], rows["ms_ssim"] = ssim_and_ms_ssim(reconstructions, images)
    else:
        large_enough = side >= _SSIM_MINIMUM
        rows["ssim"] = ssim(reconstructions, images) if large_enough else _missing(len(images))
        rows["ms_ssim"] = _missing(len(images))
    for name, distance in measures.lpips.items():
        large_enough = side >= MINIMUM_SIZE[distance.net]
        with torch.no_grad():
            rows[name] = distance(reconstructions, images) if large_enough else _missing(len(images))
    return rows


def _detail_values(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[dict[str, Tensor], WorstCrops | None]:
    """Returns metric → [B] of colours and of spatial frequencies, and the crops with the worst colours.

    Args:
        pairs: of reconstructions and images [B, C, H, W]; several, such as composites, are averaged.
    """
    found = [band_snr(*pair) for pair in pairs]
    crops = None
    if pairs[0][0].shape[1] in (1, 3, 4):
        shown = [(to_rgb(reconstructions), to_rgb(images)) for reconstructions, images in pairs]
        difference = torch.stack([colour_difference(*pair) for pair in shown]).mean(dim=0)
        for values, pair in zip(found, shown, strict=True):
            values |= {"delta_e": difference.mean(dim=(1, 2)), **channel_shifts(*pair)}
        crops = worst_crops(difference)
    return {name: torch.stack([values[name] for values in found]).mean(dim=0) for name in found[0]}, crops


def transparent_values(reconstructions: Tensor, images: Tensor, measures: Measures) -> dict[str, Tensor]:
    """Returns the means of the metrics over the composites on black and on white, and PSNRs of their own."""
    black, white = (pixel_values(*pair, measures) for pair in composites(reconstructions, images))
    means = {name: (value + white[name]) / 2 for name, value in black.items()}
    return means | transparent_psnr(reconstructions, images)


def _features(extractor: FeatureExtractor, pixels: Tensor) -> Tensor:
    """Returns features [B, d] on the CPU; NaN for images that are too small for the network."""
    if min(pixels.shape[2:]) < extractor.smallest_side:
        return torch.full((len(pixels), extractor.dimensions), float("nan"))
    return extractor(to_rgb(pixels)).cpu()


def _drift(
    drift: Drift,
    indices: Sequence[int],
    model: NamedModel,
    images: Tensor,
    first: Tensor,
    measure: Callable[[Tensor, Tensor], Tensor],
) -> dict[str, Tensor]:
    """Returns ``cycle_psnr_ROUNDS`` → [B]; NaN for images whose drift is not measured."""
    rows = {f"cycle_psnr_{rounds}": _missing(len(images)) for rounds in drift.rounds}
    chosen = [position for position, index in enumerate(indices) if index in drift.indices]
    if chosen:
        found = cycle_drift(
            lambda x: model(x).sample, images[chosen], drift.rounds, first=first[chosen], measure=measure
        )
        for rounds, ratios in found.items():
            rows[f"cycle_psnr_{rounds}"][chosen] = ratios.cpu()
    return rows


def batches(block: Block, batch_size: int) -> Iterator[tuple[list[int], Tensor]]:
    """Yields indices and images [B, C, H, W] uint8 of neighbours of one size, in the block's order."""
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
