"""Images on their way to the encoder: decoded in workers, batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from latentae.data import BrokenImageError, CenterCrop, ImageSource
from latentae.data.seeding import REPLACEMENT, generator
from latentae.data.transforms import to_picture, to_tensor
from latentae.data.workers import WatchedLoader, announce
from latentae.latents.cache.planning import ShardPlan, Size

_MAX_RETRIES = 16  # as in training


@dataclass
class ImageBatch:
    """Some images of one shard.

    Attributes:
        images: [B, C, H, W] float32 in [−1, 1]; None where none of them could be decoded.
        indices: of the images in the data: those that are shown.
        broken: ``name: reason`` of those that could not be decoded.
    """

    images: Tensor | None
    indices: list[int]
    broken: list[str]

    def pin_memory(self) -> ImageBatch:
        """So that a GPU can fetch the images while it computes; a DataLoader calls it."""
        return ImageBatch(
            None if self.images is None else self.images.pin_memory(), self.indices, self.broken
        )


class CacheImages(Dataset[ImageBatch]):
    """``images[size, indices]`` is the batch of some images at one size.

    Args:
        source: the images.
        channels: of them.
        crop: resize and crop to the size; otherwise they must have it.
        broken: ``skip``, ``replace`` or ``stop``: see ``CacheOptions``.
        seed: chooses replacements.
    """

    def __init__(self, source: ImageSource, channels: int, *, crop: bool, broken: str, seed: int) -> None:
        self.source = source
        self.channels = channels
        self.crop = crop
        self.broken = broken
        self.seed = seed

    def __getitem__(self, key: tuple[Size, Sequence[int]]) -> ImageBatch:
        size, indices = key
        batch = ImageBatch(None, [], [])
        images = []
        for index in indices:
            for candidate in self._candidates(index):
                try:
                    images.append(self._image(candidate, size))
                except BrokenImageError as error:
                    batch.broken.append(" ".join(str(error).split()))
                    continue
                batch.indices.append(candidate)
                break
        if images:
            batch.images = torch.stack(images)
        return batch

    def _candidates(self, index: int) -> list[int]:
        if self.broken != "replace":
            return [index]
        others = generator(self.seed, REPLACEMENT, 0, index).integers(len(self.source), size=_MAX_RETRIES)
        return [index, *others.tolist()]

    def _image(self, index: int, size: Size) -> Tensor:
        announce(self.source.name(index))
        picture = self.source.load(index, self.channels)
        return CenterCrop(size)(picture) if self.crop else to_tensor(to_picture(picture))


def batch_loader(
    images: CacheImages, shards: Sequence[ShardPlan], *, batch_size: int, workers: int, pin_memory: bool
) -> WatchedLoader:
    """The batches of these shards, one shard after the other; see ``batch_sizes``."""
    keys = [
        (shard.size, shard.indices[start : start + batch_size])
        for shard in shards
        for start in range(0, len(shard.indices), batch_size)
    ]
    return WatchedLoader(
        images,
        num_workers=workers,
        sampler=keys,
        batch_size=None,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # or the loader would draw from torch's global one
    )


def batch_sizes(shard: ShardPlan, batch_size: int) -> list[int]:
    """How many images are asked for in each batch of a shard."""
    count = len(shard.indices)
    return [min(batch_size, count - start) for start in range(0, count, batch_size)]
