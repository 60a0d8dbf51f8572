"""How images are prepared before they are judged: published numbers of one model differ by that alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from latentae.data import ImageSource, open_source
from latentae.data.locate import locate, validation_split
from latentae.data.names import printable_name
from latentae.data.table import prepare_hub_dataset
from latentae.data.transforms import Picture, Window, resize_window, to_picture, to_tensor
from latentae.evaluation.metrics import to_uint8

BLOCK_SIZE = 32
"""Consecutive images that one process measures together."""


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


def open_images(
    name: str,
    split: str | None = None,
    *,
    image_column: str | None = None,
    dataset_config: str | None = None,
    value_range: tuple[float, float] | None = None,
    max_pixels: int | None = None,
) -> tuple[str, ImageSource]:
    """The split that is measured, and its images.

    Args:
        name: ``photos``, a path, or a dataset of the hub.
        split: its split; None takes the validation split, else the test split, else the first there is.
        image_column, dataset_config, value_range, max_pixels: as ``open_source`` takes them.

    Raises:
        ValueError: there are no such data, or no such split.
    """
    if split is None:
        names = _splits(name, dataset_config)
        split = validation_split(names, "") or names[0]
    source = open_source(
        name,
        split=split,
        image_column=image_column,
        dataset_config=dataset_config,
        value_range=value_range,
        max_pixels=max_pixels,
    )
    return split, source


def _splits(name: str, dataset_config: str | None) -> list[str]:
    located = locate(name)
    if located.kind == "hub":
        return list(prepare_hub_dataset(located.hub_id, dataset_config).info.splits)
    if located.kind == "photos":
        return ["train", "validation"]
    return list(located.splits)


@dataclass
class Block:
    """Some consecutive images.

    Attributes:
        number: which block, from 0.
        indices: of the images in the data, those that could be read.
        names: theirs.
        images: [C, H, W] uint8 each; sizes may differ. ``to_images`` makes what models take of them.
        unreadable: ``name: reason`` of the others.
    """

    number: int
    indices: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


class ImageBlocks(Dataset[Block]):
    """Blocks of a source's first images, prepared as a protocol says.

    Args:
        source: the images.
        protocol: what is done to each.
        channels: of the images, as the models take them.
        limit: how many images at most, evenly spread over the source; None takes all.
        smallest_side: pixels that the shorter side of a prepared image must have; others cannot be measured.

    Raises:
        ValueError: a limit below one.
    """

    def __init__(
        self,
        source: ImageSource,
        protocol: Protocol,
        channels: int,
        limit: int | None = None,
        smallest_side: int = 1,
    ) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"limit is {limit}, but at least one image must be measured")
        count = len(source) if limit is None else min(limit, len(source))
        self.source = source
        self.protocol = protocol
        self.channels = channels
        self.smallest_side = smallest_side
        self.indices = [position * len(source) // count for position in range(count)]

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
        """Image ``index`` of the source, [C, H, W] float32 in [−1, 1] as the protocol has it.

        Raises:
            ValueError: it cannot be read, or is too small.
        """
        image = self.protocol(self.source.load(index, self.channels))
        height, width = image.shape[1:]
        if min(height, width) < self.smallest_side:
            raise ValueError(
                f"a picture of {height} x {width} is smaller than one latent, which stands for "
                f"{self.smallest_side} pixels a side"
            )
        return image

    def check(self, samples: int = 8) -> None:
        """Reads some images, spread over the data, to know before all work whether any can be read.

        Raises:
            ValueError: none of them can; the message says why the last cannot.
        """
        reason = ""
        for position in range(min(samples, len(self.indices))):
            index = self.indices[position * len(self.indices) // min(samples, len(self.indices))]
            try:
                self.prepare(index)
            except ValueError as error:
                reason = _reason(self.source.name(index), error)
            else:
                return
        raise ValueError(f"none of the images that were tried can be measured: {reason}")

    @cached_property
    def list_sha256(self) -> str:
        """A hash of which images are measured, by name and in order; not of their pixels."""
        names = "\n".join(self.source.name(index) for index in self.indices)
        return hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()


def _reason(name: str, error: Exception) -> str:
    """``name: why``, in one line; errors of the data begin with the name, or the path it ends."""
    reason = " ".join(str(error).split())
    shown = printable_name(name)
    return reason if shown in reason else f"{shown}: {reason}"


def block_loader(blocks: ImageBlocks, numbers: Sequence[int], num_workers: int = 0) -> DataLoader[Block]:
    """Yields the blocks of these numbers, in order, decoded in ``num_workers`` processes."""
    return DataLoader(
        blocks,
        batch_size=None,
        sampler=numbers,
        num_workers=num_workers,
        prefetch_factor=2 if num_workers else None,
    )
