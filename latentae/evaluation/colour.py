"""Colours: CIEDE2000 (Sharma, Wu & Dalal 2005, doi:10.1002/col.20070), and shifts of channels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from latentae.devices import to_float64
from latentae.evaluation.metrics import to_uint8

CROP = 64
"""Side in pixels of the crops that a report shows as the worst."""
_CROP_STRIDE = 16
_COLOURS = ("red", "green", "blue")
SHIFT_METRICS = tuple(f"{kind}_shift_{colour}" for kind in ("mean", "std") for colour in _COLOURS)
"""The metrics of ``channel_shifts``."""

# sRGB (IEC 61966-2-1) → CIE XYZ, divided by the white point D65 of 2°.
_TO_XYZ = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
_WHITE = (0.95047, 1.0, 1.08883)
_EPSILON, _KAPPA = 0.008856, 7.787
_25_TO_7 = 25.0**7


@torch.no_grad()
def colour_difference(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Returns ΔE of CIEDE2000 at each pixel: [B, H, W] float64, 0 or more.

    About 1 is the smallest difference that is seen side by side, and 2 to 3 are seen at a glance. Images are
    rounded to 8 bits, as saved. Equal to scikit-image's ``deltaE_ciede2000`` of ``rgb2lab``.

    Args:
        reconstruction, images: [B, 3, H, W] in [-1, 1], as sRGB.
    """
    # One image at a time stays in the processor's cache.
    pairs = zip(to_uint8(reconstruction), to_uint8(images), strict=True)
    return torch.stack([_ciede2000(_to_lab(x), _to_lab(y)) for x, y in pairs])


@torch.no_grad()
def channel_shifts(reconstruction: Tensor, images: Tensor) -> dict[str, Tensor]:
    """Returns how far the mean and the deviation of each channel move: metric → [B] float64.

    In levels of 8 bits, reconstruction minus image. A mean shift is a tint or a change of brightness, and a
    negative shift of the deviation is a loss of contrast.

    Args:
        reconstruction, images: [B, 3, H, W] in [-1, 1].
    """
    x, y = (to_float64(to_uint8(each)).flatten(2) for each in (reconstruction, images))
    means = x.mean(dim=2) - y.mean(dim=2)
    deviations = x.std(dim=2, correction=0) - y.std(dim=2, correction=0)
    return dict(zip(SHIFT_METRICS, torch.cat([means, deviations], dim=1).unbind(1), strict=True))


@dataclass(frozen=True)
class WorstCrops:
    """The square of each image whose mean ΔE is the largest.

    Attributes:
        delta_e: [B] float64, that mean.
        corner: [B, 2] int64, its upper and left edge in pixels.
    """

    delta_e: Tensor
    corner: Tensor


def worst_crops(difference: Tensor) -> WorstCrops:
    """Returns the worst square of 64 pixels of each image; of a smaller image the largest centred part of it.

    Squares begin at every 16th pixel, and the last ones at the right and lower edge.

    Args:
        difference: [B, H, W] float64, what ``colour_difference`` returns.
    """
    height, width = difference.shape[1:]
    rows, columns = (_starts(side) for side in (height, width))
    # Sums over squares by differences of cumulative sums.
    sums = F.pad(difference.cumsum(dim=1).cumsum(dim=2), (1, 0, 1, 0))
    size = (min(CROP, height), min(CROP, width))
    top, left = torch.tensor(rows, device=sums.device), torch.tensor(columns, device=sums.device)

    def corner(down: int, right: int) -> Tensor:
        return sums.index_select(1, top + down).index_select(2, left + right)

    means = corner(*size) - corner(0, size[1]) - corner(size[0], 0) + corner(0, 0)
    best, place = (means / (size[0] * size[1])).flatten(1).max(dim=1)
    return WorstCrops(best, torch.stack([top[place // len(columns)], left[place % len(columns)]], dim=1))


def _starts(side: int) -> list[int]:
    last = max(0, side - CROP)
    return sorted({*range(0, last + 1, _CROP_STRIDE), last})


def _to_lab(pixels: Tensor) -> Tensor:
    """Returns CIE L*a*b* [3, H, W] float64 of sRGB [3, H, W] uint8, under D65."""
    levels = to_float64(torch.arange(256, device=pixels.device)) / 255
    linear = torch.where(levels > 0.04045, ((levels + 0.055) / 1.055) ** 2.4, levels / 12.92)
    colour = linear[pixels.long()]
    matrix = colour.new_tensor(_TO_XYZ) / colour.new_tensor(_WHITE)[:, None]
    xyz = torch.einsum("ij,jhw->ihw", matrix, colour)
    x, y, z = torch.where(xyz > _EPSILON, xyz.clamp(min=0) ** (1 / 3), _KAPPA * xyz + 16 / 116)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def _ciede2000(first: Tensor, second: Tensor) -> Tensor:
    """Equations 2 to 22 of the paper, with all weights 1: [H, W] of two [3, H, W]."""
    lightness1, a1, b1 = first
    lightness2, a2, b2 = second
    # Chroma and hue, of a* stretched where colours are nearly grey.
    chroma = (torch.hypot(a1, b1) + torch.hypot(a2, b2)) / 2
    stretch = 1 + 0.5 * (1 - _seventh(chroma))
    a1, a2 = a1 * stretch, a2 * stretch
    chroma1, chroma2 = torch.hypot(a1, b1), torch.hypot(a2, b2)
    hue1, hue2 = (torch.atan2(b, a) % (2 * math.pi) for a, b in ((a1, b1), (a2, b2)))

    # Differences; the hue of a grey pixel does not count.
    is_grey = chroma1 * chroma2 == 0
    turn = hue2 - hue1
    apart = turn.abs() > math.pi
    turn = torch.where(apart, turn - 2 * math.pi * torch.sign(turn), turn)
    turn = torch.where(is_grey, torch.zeros_like(turn), turn)
    in_lightness, in_chroma = lightness2 - lightness1, chroma2 - chroma1
    in_hue = 2 * (chroma1 * chroma2).sqrt() * torch.sin(turn / 2)

    # Means.
    lightness, chroma, total = (lightness1 + lightness2) / 2, (chroma1 + chroma2) / 2, hue1 + hue2
    around = torch.where(total < 2 * math.pi, total + 2 * math.pi, total - 2 * math.pi)
    hue = torch.where(is_grey, total, torch.where(apart, around, total) / 2)

    # Weights.
    degrees = math.pi / 180
    t = (
        1
        - 0.17 * torch.cos(hue - 30 * degrees)
        + 0.24 * torch.cos(2 * hue)
        + 0.32 * torch.cos(3 * hue + 6 * degrees)
        - 0.20 * torch.cos(4 * hue - 63 * degrees)
    )
    offset = (lightness - 50).square()
    scaled_lightness = in_lightness / (1 + 0.015 * offset / (20 + offset).sqrt())
    scaled_chroma = in_chroma / (1 + 0.045 * chroma)
    scaled_hue = in_hue / (1 + 0.015 * chroma * t)
    turned = 60 * degrees * torch.exp(-((hue / degrees - 275) / 25).square())
    rotation = -torch.sin(turned) * 2 * _seventh(chroma)
    squares = scaled_lightness.square() + scaled_chroma.square() + scaled_hue.square()
    return (squares + rotation * scaled_chroma * scaled_hue).clamp(min=0).sqrt()


def _seventh(chroma: Tensor) -> Tensor:
    """√(C⁷ / (C⁷ + 25⁷))."""
    power = chroma**7
    return (power / (power + _25_TO_7)).sqrt()
