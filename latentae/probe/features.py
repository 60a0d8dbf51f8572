"""Features of real, reconstructed and generated pictures, and the Fréchet distances between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from latentae.evaluation.blocks import ImageBlocks, block_loader, to_images
from latentae.evaluation.features import FeatureExtractor, to_rgb
from latentae.evaluation.frechet import GaussianStatistics, frechet_distance
from latentae.evaluation.metrics import to_uint8
from latentae.probe.randomness import generator

Features = dict[str, Tensor]
"""Network → [N, d] float32 on the CPU."""


@torch.no_grad()
def features_of(
    batches: Iterable[Tensor], extractors: dict[str, FeatureExtractor], device: torch.device
) -> Features:
    """The features of pictures.

    Args:
        batches: [B, C, H, W] uint8 each.
        extractors: by network.

    Raises:
        ValueError: pictures that a network cannot judge.
    """
    found: dict[str, list[Tensor]] = {name: [torch.zeros(0, e.dimensions)] for name, e in extractors.items()}
    for batch in batches:
        pictures = to_rgb(batch.to(device))
        for name, extractor in extractors.items():
            found[name].append(extractor(pictures).float().cpu())
    return {name: torch.cat(parts) for name, parts in found.items()}


def real_images(blocks: ImageBlocks, num_workers: int = 0) -> Iterator[Tensor]:
    """The pictures [B, C, H, W] uint8 of a source, block after block; unreadable ones are left out."""
    return readable(blocks, num_workers)[1]


def readable(blocks: ImageBlocks, num_workers: int = 0) -> tuple[list[int], Iterator[Tensor]]:
    """The pictures as ``real_images`` gives them, and which they are: a list that grows as they come."""
    indices: list[int] = []

    def pictures() -> Iterator[Tensor]:
        for block in block_loader(blocks, range(len(blocks)), num_workers):
            if block.images:
                indices.extend(block.indices)
                yield torch.stack(block.images)

    return indices, pictures()


@torch.no_grad()
def reconstructed(
    model: Callable[[Tensor], Any], images: Iterable[Tensor], device: torch.device
) -> Iterator[Tensor]:
    """What a model makes of pictures [B, C, H, W] uint8, as such pictures."""
    for batch in images:
        yield to_uint8(model(to_images(batch.to(device))).sample.float().clamp(-1, 1)).cpu()


def distance(first: Tensor, second: Tensor) -> float:
    """The Fréchet distance between two sets of features [N, d] and [M, d], two or more each."""
    statistics = []
    for features in (first, second):
        gathered = GaussianStatistics(features.shape[1])
        gathered.add(features)
        statistics.append(gathered)
    return frechet_distance(*statistics)


def floor(features: Tensor, count: int, seed: int) -> float:
    """The distance between ``count`` real images, at most half of them all, and the other ones.

    It is what perfect samples, as many, would have: not zero, since few features do not tell a distribution.
    """
    order = torch.randperm(len(features), generator=generator(seed, "floor"))
    count = min(count, len(features) // 2)
    return distance(features[order[:count]], features[order[count:]])
