"""The features of the real images, computed once for all models and kept in the probe's folder."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from latentae.evaluation.blocks import ImageBlocks
from latentae.evaluation.features import FeatureExtractor
from latentae.files import write_aside
from latentae.probe.features import Features, features_of, readable

_INDICES = "indices"


def reference_features(
    blocks: ImageBlocks,
    extractors: dict[str, FeatureExtractor],
    file: Path,
    device: torch.device,
    num_workers: int = 0,
) -> tuple[Features, list[int]]:
    """The features of all images that can be read, and which these are.

    Args:
        file: where they are kept, or are already, of the same images and networks.
    """
    try:
        kept = load_file(file)
    except (OSError, SafetensorError):
        indices, pictures = readable(blocks, num_workers)
        features = features_of(pictures, extractors, device)
        write_aside(file, save({**features, _INDICES: torch.tensor(indices)}))
        return features, indices
    indices = kept.pop(_INDICES).tolist()
    return kept, indices
