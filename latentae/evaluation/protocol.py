"""How images are prepared before they are judged: published numbers of one model differ by that alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from latentae.data.transforms import Picture, Window, resize_window, to_picture, to_tensor


@dataclass(frozen=True)
class Protocol:
    """What is done to every image; two results can be compared where their protocols are equal.

    Reconstructions are clamped and rounded to 8 bits, and measured against the same crops, in 8 bits too.
    Features are taken of those 8-bit images, by each network's own resizing. Each image counts once.

    Attributes:
        name: what it is called.
        resize: the shorter side in pixels after an antialiased bicubic resize; None leaves the size.
        crop: side in pixels of a central square; None keeps the whole image, which models whose factor does
            not divide it pad by repeating the right and bottom edge, and crop again.
    """

    name: str
    resize: int | None
    crop: int | None

    def __call__(self, picture: NDArray[Any]) -> Tensor:
        """The image [C, H, W] float32 in [−1, 1], on the 8-bit grid, of a picture [H, W, C].

        Args:
            picture: uint8, or float32 in [0, 1].

        Raises:
            ValueError: the picture is smaller than a crop that is not resized to.
        """
        pixels = to_picture(picture)
        if self.resize is not None:
            pixels = _resized(pixels, self.resize)
        if self.crop is not None:
            pixels = _cropped(pixels, self.crop)
        return _on_grid(to_tensor(pixels))

    def describe(self) -> dict[str, Any]:
        """Every choice, for a report."""
        return {
            **asdict(self),
            "interpolation": None if self.resize is None else "bicubic, antialiased (Pillow)",
            "output": "clamped, rounded to 8 bits",
            "reference": "the same crops in 8 bits",
        }


PROTOCOLS = {
    "imagenet-256": Protocol("imagenet-256", resize=256, crop=256),
    "imagenet-512": Protocol("imagenet-512", resize=512, crop=512),
    "native": Protocol("native", resize=None, crop=None),
}
"""``imagenet-256`` is what most published reconstruction numbers at 256 pixels use."""


def protocol_called(name: str) -> Protocol:
    """The protocol of a name: one of ``PROTOCOLS``, or ``crop-N`` (a central square of N pixels, unresized),
    or ``resize-N`` (as ``imagenet-N``, at any size).

    Raises:
        ValueError: no such protocol.
    """
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    kind, _, size = name.partition("-")
    if kind in ("crop", "resize") and size.isdecimal() and int(size) > 0:
        return Protocol(name, resize=int(size) if kind == "resize" else None, crop=int(size))
    raise ValueError(
        f"protocol is {name!r}, but must be one of {', '.join(PROTOCOLS)}, crop-N or resize-N (N in pixels)"
    )


def _resized(picture: Picture, shorter: int) -> Picture:
    """As torchvision's `Resize`: the longer side rounds down."""
    height, width = picture.shape[:2]
    size = (shorter, shorter * width // height) if height <= width else (shorter * height // width, shorter)
    return resize_window(picture, Window(0, 0, height, width), size)


def _cropped(picture: Picture, side: int) -> Picture:
    """As torchvision's `CenterCrop`."""
    height, width = picture.shape[:2]
    if min(height, width) < side:
        raise ValueError(
            f"a picture of {height} x {width} is smaller than the crop of {side}; use resize-{side}"
        )
    top, left = round((height - side) / 2), round((width - side) / 2)
    return picture[top : top + side, left : left + side]


def _on_grid(images: Tensor) -> Tensor:
    """The nearest images that 8 bits can hold."""
    return ((images + 1) * 127.5).round_() / 127.5 - 1
