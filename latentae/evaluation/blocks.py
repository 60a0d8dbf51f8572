"""Images of an evaluation: how they are prepared, and fixed blocks of them.

Published numbers of one model differ by the preparation alone. Blocks are fixed, so that no number depends on
how many processes share them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from latentae.data import DataSelection, ImageSource
from latentae.data.locate import locate, validation_split
from latentae.data.names import printable_name
from latentae.data.source import spread_evenly
from latentae.data.table_files import prepare_hub_dataset
from latentae.data.transforms import Picture, Window, resize_window, to_picture, to_tensor
from latentae.evaluation.metrics import to_uint8

BLOCK_SIZE = 32
"""Number of consecutive images that one process measures together."""


@dataclass(frozen=True)
class Protocol:
    """Prepares every image in the same way; results can be compared if their protocols are equal.

    Reconstructions are clamped and rounded to 8 bits, and measured against the same crops, in 8 bits too.
    Features are taken of those 8-bit images, by each network's own resizing. Each image counts once.

    Attributes:
        name: of the protocol.
        resize: the shorter side in pixels after an antialiased bicubic resize; None leaves the size.
        crop: side in pixels of a central square; None keeps the whole image, which models whose factor does
            not divide it pad by repeating the right and bottom edge, and crop again.
    """

    name: str
    resize: int | None
    crop: int | None

    def __call__(self, picture: NDArray[Any], *, alpha: bool = False) -> Tensor:
        """Prepares a picture [H, W, C], uint8 or float32 in [0, 1].

        Args:
            picture: as ``decode_image`` returns it.
            alpha: whether four channels are RGBA: see ``resize_window``.

        Returns:
            [C, H, W] float32 in [−1, 1], on the 8-bit grid.

        Raises:
            ValueError: the picture is smaller than the crop, and the protocol does not resize.
        """
        pixels = to_picture(picture)
        if self.resize is not None:
            pixels = _resized(pixels, self.resize, alpha=alpha)
        if self.crop is not None:
            pixels = _cropped(pixels, self.crop)
        return ((to_tensor(pixels) + 1) * 127.5).round_() / 127.5 - 1

    def describe(self) -> dict[str, Any]:
        """Returns every choice, for a report."""
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
    """Returns the protocol of a name; raises ValueError where there is none.

    Args:
        name: one of ``PROTOCOLS``; ``crop-N``, a central square of N pixels without resizing; or
            ``resize-N``, like ``imagenet-N`` at any size.
    """
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    kind, _, size = name.partition("-")
    if kind in ("crop", "resize") and size.isdecimal() and int(size) > 0:
        return Protocol(name, resize=int(size) if kind == "resize" else None, crop=int(size))
    raise ValueError(
        f"protocol is {name!r}, but must be one of {', '.join(PROTOCOLS)}, crop-N or resize-N (N in pixels)"
    )


def _resized(picture: Picture, shorter: int, *, alpha: bool) -> Picture:
    """Resizes like torchvision's `Resize`: the longer side is rounded down."""
    height, width = picture.shape[:2]
    size = (shorter, shorter * width // height) if height <= width else (shorter * height // width, shorter)
    return resize_window(picture, Window(0, 0, height, width), size, alpha=alpha)


def _cropped(picture: Picture, side: int) -> Picture:
    """Crops like torchvision's `CenterCrop`."""
    height, width = picture.shape[:2]
    if min(height, width) < side:
        raise ValueError(
            f"a picture of {height} x {width} is smaller than the crop of {side}; use resize-{side}"
        )
    top, left = round((height - side) / 2), round((width - side) / 2)
    return picture[top : top + side, left : left + side]


def open_images(selection: DataSelection) -> tuple[str, ImageSource]:
    """Opens the images to measure on; returns the name of their split, and the images.

    Args:
        selection: of the images. An empty split takes the validation split, else the test split, else the
            first one.

    Raises:
        ValueError: the data or the split do not exist.
    """
    if not selection.split:
        names = _splits(selection)
        selection = replace(selection, split=validation_split(names, "") or names[0])
    return selection.split, selection.open()


def _splits(selection: DataSelection) -> list[str]:
    located = locate(selection.name)
    if located.kind == "hub":
        return list(prepare_hub_dataset(located.hub_id, selection.dataset_config).info.splits)
    return ["train", "validation"] if located.kind == "photos" else list(located.splits)


@dataclass
class Block:
    """Consecutive images.

    Attributes:
        number: of the block, from 0.
        indices: in the data, of the images that could be read.
        names: of those images.
        images: those images, [C, H, W] uint8 each; sizes may differ. ``to_images`` converts them for models.
        unreadable: ``name: reason`` of the other images.
    """

    number: int
    indices: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


class ImageBlocks(Dataset[Block]):
    """Blocks of a source's images, prepared by a protocol.

    Args:
        source: the images.
        protocol: prepares each of them.
        channels: of the images that the models take.
        limit: number of images at most, evenly spread over the source; None takes all.
        smallest_side: pixels that the shorter side of a prepared image must have; smaller images count as
            unreadable.
        fixed_side: pixels that both sides must have; images of other sizes count as unreadable. None: any.
        alpha: whether the images are RGBA.

    Raises:
        ValueError: the limit is below 1.
    """

    def __init__(
        self,
        source: ImageSource,
        protocol: Protocol,
        channels: int,
        limit: int | None = None,
        smallest_side: int = 1,
        fixed_side: int | None = None,
        *,
        alpha: bool = False,
    ) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"limit is {limit}, but at least one image must be measured")
        self.source = source
        self.protocol = protocol
        self.channels = channels
        self.smallest_side = smallest_side
        self.fixed_side = fixed_side
        self.alpha = alpha
        self.indices = spread_evenly(len(source) if limit is None else limit, len(source))

    def __len__(self) -> int:
        return -(-len(self.indices) // BLOCK_SIZE)

    def __getitem__(self, number: int) -> Block:
        block = Block(number)
        for index in self.indices[number * BLOCK_SIZE : (number + 1) * BLOCK_SIZE]:
            name = self.source.name(index)
            try:
                image = self.prepare(index)
            except ValueError as error:
                block.unreadable.append(_reason(name, error))
                continue
            block.indices.append(index)
            block.names.append(name)
            block.images.append(to_uint8(image))
        return block

    def prepare(self, index: int) -> Tensor:
        """Returns image ``index`` of the source, prepared; raises ValueError where it cannot be used."""
        image = self.protocol(self.source.load(index, self.channels), alpha=self.alpha)
        height, width = image.shape[1:]
        if min(height, width) < self.smallest_side:
            raise ValueError(
                f"a picture of {height} x {width} is smaller than one latent, which stands for "
                f"{self.smallest_side} pixels a side"
            )
        if self.fixed_side is not None and (height, width) != (self.fixed_side, self.fixed_side):
            raise ValueError(
                f"a picture of {height} x {width}, and a model takes images of {self.fixed_side} x "
                f"{self.fixed_side} pixels alone: crop it first, or choose another protocol"
            )
        return image

    def check(self, samples: int = 8) -> None:
        """Reads some evenly spread images; raises ValueError, with the last reason, if none can be read."""
        reason = ""
        for position in spread_evenly(samples, len(self.indices)):
            index = self.indices[position]
            try:
                self.prepare(index)
            except ValueError as error:
                reason = _reason(self.source.name(index), error)
            else:
                return
        raise ValueError(f"none of the images that were tried can be measured: {reason}")

    @cached_property
    def list_sha256(self) -> str:
        """A hash of the images' names in order, not of their pixels."""
        names = "\n".join(self.source.name(index) for index in self.indices)
        return hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()


def _reason(name: str, error: Exception) -> str:
    """Returns ``name: reason`` in one line; errors of the data may name the image already."""
    reason = " ".join(str(error).split())
    shown = printable_name(name)
    return reason if shown in reason else f"{shown}: {reason}"


def block_loader(blocks: ImageBlocks, numbers: Sequence[int], num_workers: int = 0) -> DataLoader[Block]:
    """Returns a loader of the blocks of these numbers, in order, decoded in ``num_workers`` processes."""
    return DataLoader(
        blocks,
        batch_size=None,
        sampler=numbers,
        num_workers=num_workers,
        prefetch_factor=2 if num_workers else None,
    )
