"""The images of an evaluation in fixed blocks, so that nothing depends on how many processes share them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from latentae.data.image_source import ImageSource
from latentae.data.names import printable_name
from latentae.evaluation.metrics import to_uint8
from latentae.evaluation.protocol import Protocol

BLOCK_SIZE = 32
"""Consecutive images that one process measures together."""


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


def to_images(pixels: Tensor) -> Tensor:
    """float32 in [−1, 1] of 8-bit images; ``to_uint8`` undoes it."""
    return pixels.float() / 127.5 - 1


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
