"""The images of an evaluation in fixed blocks, so that nothing depends on how many processes share them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from latentae.data import BrokenImageError
from latentae.data.image_source import ImageSource
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
        images: [C, H, W] each, float32 in [−1, 1] on the 8-bit grid; sizes may differ.
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

    Raises:
        ValueError: a limit below one.
    """

    def __init__(
        self, source: ImageSource, protocol: Protocol, channels: int, limit: int | None = None
    ) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"limit is {limit}, but at least one image must be measured")
        count = len(source) if limit is None else min(limit, len(source))
        self.source = source
        self.protocol = protocol
        self.channels = channels
        self.indices = [position * len(source) // count for position in range(count)]

    def __len__(self) -> int:
        return -(-len(self.indices) // BLOCK_SIZE)

    def __getitem__(self, number: int) -> Block:
        block = Block(number)
        for index in self.indices[number * BLOCK_SIZE : (number + 1) * BLOCK_SIZE]:
            name = self.source.name(index)
            try:
                image = self.protocol(self.source.load(index, self.channels))
            except (BrokenImageError, ValueError) as error:
                reason = str(error).replace("\n", " ")
                block.unreadable.append(reason if name in reason else f"{name}: {reason}")
                continue
            block.indices.append(index)
            block.names.append(name)
            block.images.append(image)
        return block

    @property
    def list_sha256(self) -> str:
        """A hash of which images are measured, by name and in order; not of their pixels."""
        names = "\n".join(self.source.name(index) for index in self.indices)
        return hashlib.sha256(names.encode()).hexdigest()


def block_loader(blocks: ImageBlocks, numbers: list[int], num_workers: int = 0) -> DataLoader[Block]:
    """Yields the blocks of these numbers, in order, decoded in ``num_workers`` processes."""
    return DataLoader(
        blocks,
        batch_size=None,
        sampler=numbers,
        num_workers=num_workers,
        prefetch_factor=2 if num_workers else None,
    )
