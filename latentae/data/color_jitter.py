"""Colour augmentation: changes the colours of a crop at random, with one affine map for all of its pixels."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from latentae.data.dataset import ImageDataset
from latentae.data.transforms import RandomCrop


@dataclass(frozen=True)
class ColorJitter:
    """Changes the colours of some images at random (Karras et al., arXiv 2006.06676, appendix B).

    With g the unit vector of the greys, (1, 1, 1)/√3, a pixel x in [-1, 1]³ becomes

        c · (g gᵀ + s · (I − g gᵀ)) · R(θ) · P · x + 2b, clipped to [-1, 1].

    P orders the channels anew and R(θ) rotates around g, so a third of a turn shifts the channels by one.
    Both keep the mean of the three channels of each pixel.

    Args:
        probability: share of the images whose colours are changed, in [0, 1].
        permute: P is one of the six orders of the channels, each equally often. False: P = I.
        hue: θ is uniform in ± this share of a turn, in [0, 0.5].
        saturation: s is uniform in 1 ± this number, in [0, 1].
        contrast: c is uniform in 1 ± this number, in [0, 1]; it scales around mid-grey.
        brightness: b is uniform in ± this share of the range from black to white, in [0, 1].

    Raises:
        ValueError: a number is out of range.
    """

    probability: float = 1.0
    permute: bool = False
    hue: float = 0.0
    saturation: float = 0.0
    contrast: float = 0.0
    brightness: float = 0.0

    def __post_init__(self) -> None:
        for name in ("probability", "hue", "saturation", "contrast", "brightness"):
            value, most = getattr(self, name), 0.5 if name == "hue" else 1.0
            if not 0 <= value <= most:
                raise ValueError(f"color_jitter: {name}={value} must be between 0 and {most:g}")

    def __call__(self, image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Changes [3, H, W] or RGBA [4, H, W] in [-1, 1]; alpha stays. All random numbers come from `rng`."""
        if image.shape[0] not in (3, 4):
            raise ValueError(f"color_jitter needs RGB or RGBA images, not {image.shape[0]} channels")
        if rng.random() >= self.probability:
            return image
        matrix, offset = self.draw(rng)
        colors = image[:3].flatten(1)
        changed = torch.addmm(torch.tensor(offset), torch.from_numpy(matrix).float(), colors)
        changed = changed.clamp_(-1, 1).view_as(image[:3])
        return changed if image.shape[0] == 3 else torch.cat([changed, image[3:]])

    def draw(self, rng: np.random.Generator) -> tuple[NDArray[np.float64], float]:
        """Draws the map of one image: a matrix [3, 3] and an offset.

        It takes the same numbers from `rng` whatever the settings are.
        """
        order = rng.permutation(3)
        turn, saturation, contrast, brightness = rng.uniform(-1, 1, size=4)
        permutation = np.eye(3)[order] if self.permute else np.eye(3)
        grey = np.full((3, 3), 1 / 3)
        saturated = grey + (1 + self.saturation * saturation) * (np.eye(3) - grey)
        matrix = saturated @ hue_rotation(self.hue * turn) @ permutation
        return (1 + self.contrast * contrast) * matrix, 2 * self.brightness * float(brightness)


def hue_rotation(turns: float) -> NDArray[np.float64]:
    """Returns the rotation [3, 3] around the axis of the greys. A third of a turn takes red to green."""
    angle = 2 * math.pi * turns
    grey = np.full((3, 3), 1 / 3)
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    return math.cos(angle) * (np.eye(3) - grey) + math.sin(angle) * cross + grey


def with_true_colors(dataset: ImageDataset) -> ImageDataset:
    """Returns the same crops of the same images without colour jitter."""
    transform = dataset.transform
    if not isinstance(transform, RandomCrop) or transform.color_jitter is None:
        return dataset
    plain = copy.copy(dataset)
    plain.transform = copy.copy(transform)
    plain.transform.color_jitter = None
    return plain
