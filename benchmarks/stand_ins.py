"""Images, a model and networks for benchmarks that neither download anything nor wait for a real model."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from latentae.data import training_photos
from latentae.models import AutoencoderOutput

SIDE = 256


class Windows:
    """An image source: windows of the built-in photographs, as many as asked for."""

    def __init__(self, count: int) -> None:
        photos = training_photos()
        self.photos = [photos.load(index, 3) for index in range(len(photos))]
        self.count = count

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"{index}.png"

    def load(self, index: int, channels: int, minimum_side: int | None = None) -> np.ndarray:
        photo = self.photos[index % len(self.photos)]
        generator = np.random.default_rng(index)
        top, left = (int(generator.integers(side - SIDE + 1)) for side in photo.shape[:2])
        return photo[top : top + SIDE, left : left + SIDE]


class Blur(nn.Module):
    """A model whose reconstruction is half as sharp."""

    downsampling_factor = 2

    def forward(self, images: torch.Tensor) -> AutoencoderOutput:
        small = F.avg_pool2d(images, 2)
        return AutoencoderOutput(sample=F.interpolate(small, scale_factor=2.0, mode="bilinear"))


class RandomFeatures:
    """As many features as Inception's of each image, at next to no cost: for memory, which they fill."""

    name, dimensions, smallest_side, identity = "random", 2048, 1, "random-2048"

    def __init__(self) -> None:
        self.weight = torch.randn(3 * 16 * 16, 2048, generator=torch.Generator().manual_seed(0))

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return F.adaptive_avg_pool2d(images.float(), 16).flatten(1) @ self.weight


def save_random_inception(path: Path) -> None:
    """Weights under torch-fidelity's names."""

    class Unloaded(FeatureExtractorInceptionV3):
        def load_state_dict(self, *arguments: object) -> None:
            pass

    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    torch.manual_seed(0)
    torch.save(Unloaded("inception", ["2048"], feature_extractor_weights_path=empty).state_dict(), path)
