"""DiffAug: random changes of what the discriminator sees (Zhao et al. 2020, arXiv 2006.10738).

Images and reconstructions are augmented, and gradients pass through the augmentation. This keeps a
discriminator from memorising a small data set, and does not leak into the reconstructions. Images are
[B, C, H, W] in [−1, 1], of any size and channel count. Results may leave that range, as in the paper. The
caller gives the random numbers, draws [B, n] of U[0, 1), so that an image's changes depend on nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_SHIFT = 0.125  # largest translation, as a share of the side
_HOLE = 0.5  # side of the hole, likewise


def color(images: Tensor, draws: Tensor) -> Tensor:
    """Adds U[−½, ½) to brightness, multiplies saturation by U[0, 2), contrast by U[½, 1½): draws [B, 3].

    Saturation is the distance of the channels from their mean at the pixel, whatever the channels are. One
    channel has no saturation. Contrast is the distance from the image's mean.
    """
    brightness, saturation, contrast = (draw[:, None, None, None] for draw in draws.unbind(dim=1))
    images = images + (brightness - 0.5)
    grey = images.mean(dim=1, keepdim=True)
    images = grey + (images - grey) * (2 * saturation)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (images - mean) * (contrast + 0.5)


def translation(images: Tensor, draws: Tensor) -> Tensor:
    """Moves images by whole pixels, an eighth of the side at most, and fills with zeros: draws [B, 2]."""
    for dim, draw in ((2, draws[:, 0]), (3, draws[:, 1])):
        side = images.shape[dim]
        limit = int(side * _SHIFT + 0.5)
        shift = _integers(draw, 2 * limit + 1) - limit
        source = torch.arange(side, device=images.device) + shift[:, None]
        shape = (len(images), 1, side, 1) if dim == 2 else (len(images), 1, 1, side)
        inside = ((source >= 0) & (source < side)).view(shape)
        index = source.clamp(0, side - 1).view(shape).expand_as(images)
        images = images.gather(dim, index) * inside
    return images


def cutout(images: Tensor, draws: Tensor) -> Tensor:
    """Sets a rectangle of half the sides to zero, with its centre anywhere; from draws [B, 2]."""
    covered = []
    for dim, draw in ((2, draws[:, 0]), (3, draws[:, 1])):
        side = images.shape[dim]
        hole = int(side * _HOLE + 0.5)
        first = _integers(draw, side + 1 - hole % 2) - hole // 2
        position = torch.arange(side, device=images.device) - first[:, None]
        covered.append((position >= 0) & (position < hole))
    rows, columns = covered
    return images * ~(rows[:, None, :, None] & columns[:, None, None, :])


def _integers(draws: Tensor, count: int) -> Tensor:
    """Integers in [0, count) from numbers of U[0, 1)."""
    return (draws * count).long().clamp(max=count - 1)


@dataclass(frozen=True)
class _Augmentation:
    apply: Callable[[Tensor, Tensor], Tensor]
    draws: int


_AUGMENTATIONS: dict[str, _Augmentation] = {
    "color": _Augmentation(color, draws=3),
    "translation": _Augmentation(translation, draws=2),
    "cutout": _Augmentation(cutout, draws=2),
}


class DiffAugment:
    """Applies some of the augmentations, one after the other.

    Args:
        policy: out of ``color``, ``translation`` and ``cutout``, each at most once, in the order in which
            they are applied.

    Attributes:
        num_draws: how many random numbers an image needs.

    Raises:
        ValueError: an unknown name, or one given twice.
    """

    def __init__(self, policy: Sequence[str]) -> None:
        unknown = [name for name in policy if name not in _AUGMENTATIONS]
        if unknown:
            raise ValueError(f"policy holds {unknown[0]!r}, but may hold {', '.join(_AUGMENTATIONS)}")
        if len(set(policy)) < len(policy):
            raise ValueError(f"policy is {', '.join(policy)}, but may hold each augmentation only once")
        self._parts = [_AUGMENTATIONS[name] for name in policy]
        self.num_draws = sum(part.draws for part in self._parts)

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Returns augmented images.

        Args:
            images: [B, C, H, W] in [−1, 1].
            draws: [B, num_draws] of U[0, 1).
        """
        draws = draws.to(images.dtype)
        for part, own in zip(self._parts, draws.split([part.draws for part in self._parts], 1), strict=True):
            images = part.apply(images, own)
        return images
