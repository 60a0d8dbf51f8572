"""Crops: picture [H, W, C] -> tensor [C, h, w] in [-1, 1]. Only the cropped window is resized."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from latentae.data.arrays import unpremultiply

Picture = NDArray[np.uint8] | NDArray[np.float32]


class Transform(Protocol):
    """Makes a tensor of a decoded picture."""

    @property
    def minimum_side(self) -> int | None:
        """The shorter side that is enough for this transform; None: it needs the picture at its full size."""

    def __call__(self, image: Image.Image | NDArray[Any], rng: np.random.Generator) -> torch.Tensor:
        """Returns the tensor [C, H, W] in [-1, 1]. All random numbers come from `rng`."""


class ColorChange(Protocol):
    """Changes the colours of a tensor [C, H, W] in [-1, 1], which keeps its shape and range."""

    def __call__(self, image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor: ...


@dataclass(frozen=True)
class Window:
    """A rectangle in source pixels; top and left are measured from the upper left corner of the picture."""

    top: float
    left: float
    height: float
    width: float


class RandomCrop:
    """Crops a random window of a picture, resizes it to `image_size`; may mirror it and change its colours.

    Args:
        image_size: pixels of the output, one number for a square or (height, width).
        downscale: (low, high), source pixels per output pixel, drawn log-uniformly for each crop: (1, 1)
            crops at the source's own resolution, (1, 4) also shows it up to four times smaller. None: the
            window is the largest that fits, that is, the picture is resized until it just covers
            `image_size`, and then cropped.
        flip: mirror left and right with probability 1/2.
        color_jitter: changes the colours of the crop, with random numbers drawn after those of crop and flip.
            So the crops are the same with and without it.
        alpha: whether four channels are RGBA: see ``resize_window``.

    A drawn window that is larger than the picture shrinks to the largest that fits, with the same aspect; so
    a picture smaller than `image_size` is upscaled. Windows begin at whole source pixels. Resizing is bicubic
    and antialiased, and uses the pixels around the window; a window of exactly `image_size` is copied
    unchanged.

    Called with a PIL image (modes L, RGB, RGBA) or an array [H, W] or [H, W, C], uint8 or float32 in [0, 1],
    and a numpy Generator. Returns a contiguous float32 tensor [C, *image_size] in [-1, 1].
    """

    def __init__(
        self,
        image_size: int | tuple[int, int],
        downscale: tuple[float, float] | None = None,
        flip: bool = False,
        color_jitter: ColorChange | None = None,
        *,
        alpha: bool = False,
    ) -> None:
        self.image_size = check_image_size(image_size)
        self.downscale = check_downscale(downscale)
        self.flip = flip
        self.color_jitter = color_jitter
        self.alpha = alpha

    @property
    def minimum_side(self) -> int | None:
        """Twice the longer output side if `downscale` is None, else None.

        A JPEG decoded to at least this size differs very little from one decoded in full; one decoded to just
        the output's size is visibly softer.
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
        window = Window(top, left, height, width)
        cropped = resize_window(picture, window, self.image_size, alpha=self.alpha)
        if self.flip and rng.random() < 0.5:
            cropped = cropped[:, ::-1]
        tensor = to_tensor(cropped)
        return tensor if self.color_jitter is None else self.color_jitter(tensor, rng)


class CenterCrop:
    """Crops the central window of a picture and resizes it to `image_size`: `RandomCrop` without randomness.

    For `downscale` (low, high) it uses √(low × high), the median of what `RandomCrop` draws; for None the
    shorter side is resized to the image size. The picture is always decoded in full, so that measurements do
    not depend on a decoder's shortcuts. The Generator is not used.
    """

    minimum_side: int | None = None

    def __init__(
        self,
        image_size: int | tuple[int, int],
        downscale: tuple[float, float] | None = None,
        *,
        alpha: bool = False,
    ) -> None:
        self.image_size = check_image_size(image_size)
        self.downscale = check_downscale(downscale)
        self.alpha = alpha

    def __call__(
        self, image: Image.Image | NDArray[Any], rng: np.random.Generator | None = None
    ) -> torch.Tensor:
        picture = to_picture(image)
        scale = None if self.downscale is None else math.sqrt(self.downscale[0] * self.downscale[1])
        height, width = _window_size(picture, self.image_size, scale)
        top = _free_pixels(picture.shape[0], height) // 2
        left = _free_pixels(picture.shape[1], width) // 2
        window = Window(top, left, height, width)
        return to_tensor(resize_window(picture, window, self.image_size, alpha=self.alpha))


def common_minimum_side(transforms: Sequence[Transform]) -> int | None:
    """Returns the shorter side that is enough for all of these transforms; None: the full size is needed."""
    sides = [transform.minimum_side for transform in transforms]
    return max((side for side in sides if side is not None), default=None) if None not in sides else None


def check_image_size(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Returns (height, width); raises ValueError unless `image_size` is one or two positive whole numbers."""
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise ValueError(f"image_size={image_size} must be a positive number of pixels or (height, width)")
    return size[0], size[1]


def check_downscale(downscale: Sequence[float] | None) -> tuple[float, float] | None:
    """Returns (low, high) or None; raises ValueError unless 0 < low <= high."""
    if downscale is None:
        return None
    if len(downscale) != 2 or not 0 < downscale[0] <= downscale[1] < math.inf:
        raise ValueError(
            f"downscale={downscale} must be null or (low, high) with 0 < low <= high, "
            "source pixels per output pixel"
        )
    return float(downscale[0]), float(downscale[1])


def to_picture(image: Image.Image | NDArray[Any]) -> Picture:
    """Returns a PIL image or an array as [H, W, C]; raises ValueError for other modes, shapes and dtypes."""
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
    """Turns [H, W, C], uint8 or float32 in [0, 1], into a contiguous float32 tensor [C, H, W] in [-1, 1]."""
    # np.array and not np.asarray: torch accepts neither read-only nor mirrored memory.
    planes = torch.from_numpy(np.array(np.moveaxis(picture, 2, 0), order="C"))
    if planes.dtype == torch.uint8:
        return planes.float().div_(127.5).sub_(1)
    return planes.mul_(2).sub_(1)


def resize_window(
    picture: Picture, window: Window, image_size: tuple[int, int], *, alpha: bool = False
) -> Picture:
    """Resizes one window of [H, W, C] to `image_size`: bicubic, antialiased, values clipped to their range.

    The result equals that part of the whole picture resized by the same factor, at the cost of the window.
    Colours of RGBA pictures are averaged in proportion to their alpha. Four channels of uint8 always mean
    RGBA, and four of float32, as arrays have them, do so with `alpha`.
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
    is_weighted = alpha and picture.shape[2] == 4
    if is_weighted:
        around = np.concatenate([around[..., :3] * around[..., 3:], around[..., 3:]], axis=2)
    planes = [
        np.asarray(
            Image.fromarray(around[..., channel]).resize((width, height), Image.Resampling.BICUBIC, box=box)
        )
        for channel in range(picture.shape[2])
    ]
    resized = np.stack(planes, axis=2)
    if resized.dtype == np.uint8:
        return resized
    resized = resized.clip(0, 1)  # bicubic overshoots at edges
    if is_weighted:
        resized[..., :3] = unpremultiply(resized[..., :3], resized[..., 3:])
    return resized


def _window_size(
    picture: Picture, image_size: tuple[int, int], downscale: float | None
) -> tuple[float, float]:
    """Returns height and width in source pixels of the window at `downscale`, or of the largest one."""
    largest = min(picture.shape[0] / image_size[0], picture.shape[1] / image_size[1])
    scale = largest if downscale is None else min(downscale, largest)
    return image_size[0] * scale, image_size[1] * scale


def _free_pixels(side: int, window: float) -> int:
    """Returns how many whole pixels the window can move, although scale × size may round past the side."""
    return max(0, math.floor(side - window + 1e-6))
