"""Crops: a window is cut from the source picture and only that window is resized."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

Picture = NDArray[np.uint8] | NDArray[np.float32]


class Transform(Protocol):
    """What makes a training tensor of a decoded picture."""

    @property
    def minimum_side(self) -> int | None:
        """The shorter side the decoder must deliver; None: the picture is needed at its full size."""

    def __call__(self, image: Image.Image | NDArray[Any], rng: np.random.Generator) -> torch.Tensor:
        """The tensor [C, H, W] in [-1, 1]; all that is random is drawn from `rng`."""


@dataclass(frozen=True)
class Window:
    """A rectangle of the source picture in source pixels, from its upper left corner."""

    top: float
    left: float
    height: float
    width: float


class RandomCrop:
    """A random window of a picture, resized to `image_size`, perhaps mirrored.

    Args:
        image_size: pixels of the output, one number for a square or (height, width).
        downscale: (low, high), source pixels per output pixel, drawn log-uniformly for each crop: (1, 1)
            cuts at the source's own resolution, (1, 4) also shows it up to four times smaller.
            None: the window is the largest one that fits, i.e. the picture is resized until it just
            covers `image_size`, and then cropped.
        flip: mirror left and right with probability 1/2.

    Where the drawn window is larger than the picture it shrinks to the largest that fits, keeping its
    aspect; a picture smaller than `image_size` is therefore upscaled. Windows begin at whole source
    pixels. Resizing is bicubic and antialiased (pixels around the window count where the filter reaches
    them); a window of exactly `image_size` is copied unchanged.

    Called with a PIL image (modes L, RGB, RGBA) or an array [H, W] or [H, W, C], uint8 or float32 in
    [0, 1], and a numpy Generator. Returns a contiguous float32 tensor [C, *image_size] in [-1, 1]. Four
    channels of uint8 are taken for RGBA: colours are averaged in proportion to their alpha.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int],
        downscale: tuple[float, float] | None = None,
        flip: bool = False,
    ) -> None:
        self.image_size = check_image_size(image_size)
        self.downscale = check_downscale(downscale)
        self.flip = flip

    @property
    def minimum_side(self) -> int | None:
        """Twice the longer output side where no downscale is asked for, else None.

        A JPEG decoded to no less than that differs from one decoded in full by next to nothing; one
        decoded to just the output's size is visibly softer.
        """
        return 2 * max(self.image_size) if self.downscale is None else None

    def __call__(self, image: Image.Image | NDArray[Any], rng: np.random.Generator) -> torch.Tensor:
        picture = to_picture(image)
        scale = None
        if self.downscale is not None:
            scale = math.exp(rng.uniform(math.log(self.downscale[0]), math.log(self.downscale[1])))
        height, width = _window_size(picture, self.image_size, scale)
        top = int(rng.integers(_free_pixels(picture.shape[0], height) + 1))
        left = int(rng.integers(_free_pixels(picture.shape[1], width) + 1))
        cropped = resize_window(picture, Window(top, left, height, width), self.image_size)
        if self.flip and rng.random() < 0.5:
            cropped = cropped[:, ::-1]
        return to_tensor(cropped)


class CenterCrop:
    """The central window of a picture, resized to `image_size`: `RandomCrop` without the chance.

    `downscale` (low, high) is used at √(low × high), the median of what `RandomCrop` draws; for None
    the shorter side is resized to the image size. The picture is always decoded in full, so that
    what is measured does not depend on a decoder's shortcuts. The Generator is not used.
    """

    minimum_side: int | None = None

    def __init__(
        self, image_size: int | tuple[int, int], downscale: tuple[float, float] | None = None
    ) -> None:
        self.image_size = check_image_size(image_size)
        self.downscale = check_downscale(downscale)

    def __call__(
        self, image: Image.Image | NDArray[Any], rng: np.random.Generator | None = None
    ) -> torch.Tensor:
        picture = to_picture(image)
        scale = None if self.downscale is None else math.sqrt(self.downscale[0] * self.downscale[1])
        height, width = _window_size(picture, self.image_size, scale)
        top = _free_pixels(picture.shape[0], height) // 2
        left = _free_pixels(picture.shape[1], width) // 2
        return to_tensor(resize_window(picture, Window(top, left, height, width), self.image_size))


def common_minimum_side(transforms: Sequence[Transform]) -> int | None:
    """The shorter side that is enough for each of these transforms; None: the full size is needed."""
    sides = [transform.minimum_side for transform in transforms]
    return max((side for side in sides if side is not None), default=None) if None not in sides else None


def check_image_size(image_size: int | Sequence[int]) -> tuple[int, int]:
    """`image_size` as (height, width); ValueError unless it is one or two positive whole numbers."""
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise ValueError(f"image_size={image_size} must be a positive number of pixels or (height, width)")
    return size[0], size[1]


def check_downscale(downscale: Sequence[float] | None) -> tuple[float, float] | None:
    """`downscale` as (low, high); ValueError unless it is None or 0 < low <= high."""
    if downscale is None:
        return None
    if len(downscale) != 2 or not 0 < downscale[0] <= downscale[1] < math.inf:
        raise ValueError(
            f"downscale={downscale} must be null or (low, high) with 0 < low <= high, "
            "source pixels per output pixel"
        )
    return float(downscale[0]), float(downscale[1])


def to_picture(image: Image.Image | NDArray[Any]) -> Picture:
    """A PIL image or an array as [H, W, C], uint8 or float32; ValueError for anything else."""
    if isinstance(image, Image.Image):
        if image.mode not in ("L", "RGB", "RGBA"):
            raise ValueError(
                f"a PIL image of mode {image.mode}: decode it with decode_image(image, channels)"
            )
        image = np.asarray(image)
    picture = image[..., np.newaxis] if image.ndim == 2 else image
    if picture.ndim != 3 or 0 in picture.shape or picture.dtype not in (np.uint8, np.float32):
        raise ValueError(
            f"an array {list(image.shape)} of {image.dtype}: a picture is [H, W] or [H, W, C], "
            "uint8, or float32 in [0, 1]"
        )
    return picture


def to_tensor(picture: Picture) -> torch.Tensor:
    """[H, W, C], uint8 or float32 in [0, 1], as a contiguous float32 tensor [C, H, W] in [-1, 1]."""
    # np.array and not np.asarray: torch takes neither read-only nor mirrored memory.
    planes = torch.from_numpy(np.array(np.moveaxis(picture, 2, 0), order="C"))
    if planes.dtype == torch.uint8:
        return planes.float().div_(127.5).sub_(1)
    return planes.mul_(2).sub_(1)


def resize_window(picture: Picture, window: Window, image_size: tuple[int, int]) -> Picture:
    """Resize one window of [H, W, C] to `image_size`: bicubic, antialiased, values kept in range.

    Equal to that part of the whole picture resized by the same factor, at the cost of the window alone.
    """
    height, width = image_size
    bottom = min(window.top + window.height, picture.shape[0])
    right = min(window.left + window.width, picture.shape[1])
    if (window.height, window.width) == (height, width) and (window.top % 1, window.left % 1) == (0, 0):
        return picture[int(window.top) : int(bottom), int(window.left) : int(right)]
    # The filter reaches two output pixels (two source pixels, when upscaling) beyond the window.
    reach = math.ceil(2 * max(1.0, window.height / height, window.width / width)) + 1
    first_row, first_column = max(0, math.floor(window.top) - reach), max(0, math.floor(window.left) - reach)
    around = picture[first_row : math.ceil(bottom) + reach, first_column : math.ceil(right) + reach]
    box = (window.left - first_column, window.top - first_row, right - first_column, bottom - first_row)
    if picture.dtype == np.uint8 and picture.shape[2] in (3, 4):
        image = Image.fromarray(around)
        return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=box))
    planes = [
        np.asarray(
            Image.fromarray(around[..., channel]).resize((width, height), Image.Resampling.BICUBIC, box=box)
        )
        for channel in range(picture.shape[2])
    ]
    resized = np.stack(planes, axis=2)
    return resized if resized.dtype == np.uint8 else resized.clip(0, 1)  # bicubic overshoots at edges


def _window_size(
    picture: Picture, image_size: tuple[int, int], downscale: float | None
) -> tuple[float, float]:
    """Height and width in source pixels of the window at `downscale`, or the largest that fits."""
    largest = min(picture.shape[0] / image_size[0], picture.shape[1] / image_size[1])
    scale = largest if downscale is None else min(downscale, largest)
    return image_size[0] * scale, image_size[1] * scale


def _free_pixels(side: int, window: float) -> int:
    """How many whole pixels the window can move, given that scale × size may round past the side."""
    return max(0, math.floor(side - window + 1e-6))
