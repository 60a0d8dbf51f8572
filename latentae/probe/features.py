"""Features of real, reconstructed and generated images: Fréchet distances, and nearest training images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from latentae.data.seeding import REAL_HALVES, torch_generator
from latentae.evaluation.blocks import ImageBlocks, block_loader
from latentae.evaluation.distances import GaussianStatistics, frechet_distance
from latentae.evaluation.features import FeatureExtractor, to_rgb
from latentae.evaluation.metrics import to_images, to_uint8
from latentae.evaluation.transparency import composite_8_bit
from latentae.files import write_aside
from latentae.losses.compositing import WHITE

Features = dict[str, Tensor]
"""Network → [N, d] float32 on the CPU."""

_INDICES = "indices"  # the key beside those of the networks
_ROWS = 512  # queries at a time


@torch.no_grad()
def extract_features(
    batches: Iterable[Tensor],
    extractors: dict[str, FeatureExtractor],
    device: torch.device,
    *,
    alpha: bool = False,
) -> Features:
    """Extracts the features of images [B, C, H, W] uint8; raises ValueError if a network cannot.

    With ``alpha`` they are those of RGBA images over white: on one background for all, near images stay near.
    """
    found: dict[str, list[Tensor]] = {name: [torch.zeros(0, e.dimensions)] for name, e in extractors.items()}
    for batch in batches:
        pixels = batch.to(device)
        images = to_uint8(composite_8_bit(to_images(pixels), WHITE)) if alpha else to_rgb(pixels)
        for name, extractor in extractors.items():
            found[name].append(extractor(images).float().cpu())
    return {name: torch.cat(parts) for name, parts in found.items()}


def real_images(
    blocks: ImageBlocks, num_workers: int = 0, indices: list[int] | None = None
) -> Iterator[Tensor]:
    """Yields the images [B, C, H, W] uint8 of a source, block by block; unreadable ones are left out.

    Args:
        indices: a list that gets the indices of the images as they are read.
    """
    for block in block_loader(blocks, range(len(blocks)), num_workers):
        if block.images:
            if indices is not None:
                indices += block.indices
            yield torch.stack(block.images)


@torch.no_grad()
def reconstruct_images(
    model: Callable[[Tensor], Any], images: Iterable[Tensor], device: torch.device
) -> Iterator[Tensor]:
    """Yields a model's reconstructions of images [B, C, H, W] uint8, in the same form."""
    for batch in images:
        yield to_uint8(model(to_images(batch.to(device))).sample.float().clamp(-1, 1)).cpu()


def feature_distance(first: Tensor, second: Tensor) -> float:
    """Returns the Fréchet distance between features [N, d] and [M, d], of two or more images each."""
    statistics = []
    for features in (first, second):
        gathered = GaussianStatistics(features.shape[1])
        gathered.add(features)
        statistics.append(gathered)
    return frechet_distance(*statistics)


def real_distance(features: Tensor, count: int, seed: int) -> float:
    """Returns the distance between ``count`` real images, at most half of all, and the other ones.

    The same number of perfect samples would have this distance. It is not zero, since few features estimate
    a distribution badly.
    """
    order = torch.randperm(len(features), generator=torch_generator(seed, REAL_HALVES))
    count = min(count, len(features) // 2)
    return feature_distance(features[order[:count]], features[order[count:]])


def reference_features(
    blocks: ImageBlocks,
    extractors: dict[str, FeatureExtractor],
    file: Path,
    device: torch.device,
    num_workers: int = 0,
    *,
    alpha: bool = False,
) -> tuple[Features, list[int]]:
    """Returns the features of all readable images, and the indices of these images.

    Args:
        alpha: whether images are RGBA; see ``extract_features``.
        file: keeps the features; if it exists, it is read. It must be of the same images and networks.
    """
    try:
        kept = load_file(file)
    except (OSError, SafetensorError):
        indices: list[int] = []
        images = real_images(blocks, num_workers, indices)
        features = extract_features(images, extractors, device, alpha=alpha)
        write_aside(file, save({**features, _INDICES: torch.tensor(indices)}))
        return features, indices
    return kept, kept.pop(_INDICES).tolist()


@dataclass(frozen=True)
class Nearest:
    """The nearest neighbour of each of N queries: Euclidean distances [N], and positions [N] in the set."""

    distances: Tensor
    positions: Tensor


@dataclass(frozen=True)
class Memorisation:
    """Median distances to the nearest training image, and the share of samples that are suspiciously near.

    Attributes:
        samples: of generated images.
        held_out: of reconstructed held-out images: the distance of new images.
        copies: of reconstructed training images: the distance of perfect copies.
        copied_share: share of the samples that are nearer to a training image than 95 % of the held-out
            images; held-out images themselves would give 0.05.
    """

    samples: float
    held_out: float
    copies: float
    copied_share: float


def find_nearest(queries: Tensor, others: Tensor) -> Nearest:
    """Finds the nearest of the features [M, d], M ≥ 1, for each of the features [N, d]."""
    if not len(others):
        raise ValueError("there are no features to look for the nearest in")
    mode = "donot_use_mm_for_euclid_dist"
    distances, positions = [queries.new_zeros(0).double()], [torch.zeros(0, dtype=torch.int64)]
    for rows in queries.split(_ROWS):
        nearest = torch.cdist(rows.double(), others.double(), compute_mode=mode).min(dim=1)
        distances.append(nearest.values)
        positions.append(nearest.indices)
    return Nearest(torch.cat(distances), torch.cat(positions))


def measure_memorisation(samples: Nearest, held_out: Nearest, copies: Nearest) -> Memorisation:
    """Compares how near three kinds of images come to the training images."""
    threshold = torch.quantile(held_out.distances, 0.05)
    return Memorisation(
        samples=samples.distances.median().item(),
        held_out=held_out.distances.median().item(),
        copies=copies.distances.median().item(),
        copied_share=(samples.distances < threshold).double().mean().item(),
    )
