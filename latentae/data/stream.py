"""Streams of training samples from shards: files that are read front to back and shuffled in blocks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from latentae.data.dataset import ImageDataset, Sample, make_sample
from latentae.data.decode import BrokenImageError
from latentae.data.seeding import BLOCK, REPLACEMENT, SAMPLE, SHARDS, check_seed, generator
from latentae.data.source import EncodedImage, EncodedSource
from latentae.data.transforms import Transform, common_minimum_side

_MOST_BARREN_EPOCHS = 1000  # a reader's part of one epoch may be empty, but not of this many in a row
_ROW_BITS = 32
_MOST_SAMPLED_SHARDS = 16


class Shards(Protocol):
    """Data in several parts, each a sequence of images that is cheapest to read from its beginning.

    It is pickled to the loader's workers.
    """

    def __len__(self) -> int:
        """Returns the number of shards."""

    def label(self, shard: int) -> str:
        """Returns the name of a shard, the same on every machine."""

    def describe(self) -> str:
        """Says where the images are."""

    def count(self, shard: int) -> int:
        """Returns the number of images in a shard. It decodes none, but may have to read the shard."""

    def typical_count(self) -> int:
        """Returns about how many images a shard has: always the same number, found with little work."""

    def read(self, shard: int, start: int = 0, step: int = 1) -> Iterator[EncodedImage]:
        """Yields images ``start``, ``start + step``, ... of a shard, not decoded; ``row`` is the position.

        If the rest of a shard is damaged, its last image is one that cannot be decoded, with the reason.
        Raises BrokenImageError if the shard cannot be reached.
        """


@dataclass(frozen=True)
class StreamPlace:
    """Identifies one of a stream's readers: every process that decodes is a reader.

    Attributes:
        seed: of the order.
        reader: from 0.
        readers: their number over all ranks and workers.
    """

    seed: int
    reader: int = 0
    readers: int = 1


@dataclass(frozen=True)
class Piece:
    """The images ``offset``, ``offset + step``, ... of a shard."""

    shard: int
    offset: int
    step: int


def epoch_pieces(num_shards: int, place: StreamPlace, epoch: int) -> list[Piece]:
    """Returns what one reader reads in an epoch, in order; all readers together read each image once.

    The shards are dealt out in a random order given by (seed, epoch). If there are fewer shards than readers,
    several readers share a shard and each takes every ``step``-th image. The readers that are dealt one shard
    more change from epoch to epoch, so that all readers advance equally fast in the long run.
    """
    step = -(-place.readers // num_shards)
    order = generator(place.seed, SHARDS, epoch).permutation(num_shards * step)
    mine = order[(place.reader + epoch) % place.readers :: place.readers]
    return [Piece(int(number) // step, int(number) % step, step) for number in mine]


@dataclass(frozen=True)
class StreamedImage:
    """An image of a stream, and the block around it, whose images replace it if it is broken."""

    epoch: int
    index: int
    encoded: EncodedImage
    block: Sequence[EncodedImage]


class ImageStream:
    """Samples from shards, for data that are too large or too far away to be indexed or copied.

    Each reader has an endless sequence of its own: its ``epoch_pieces`` of epoch 0, then of epoch 1 and so
    on, cut into blocks of ``shuffle_block`` images. A block is read into memory, not decoded, and its images
    are taken in an order given by (seed, reader, number of the block). The whole state of a reader is
    therefore the number of images it has taken. Each image comes once per epoch. Readers do not wait for one
    another at the end of an epoch, so they may be in different epochs for a while.

    Crop and flip depend on (seed, epoch, image), as in an ``ImageDataset``, and so does the choice of the
    image in its block that replaces a broken one.

    Args:
        shards: the data.
        transform: makes the tensor, e.g. ``RandomCrop``.
        channels: 1 or more; see ``decode_image``.
        seed: of crops and flips, 0 or more.
        shuffle_block: images that are shuffled together, 1 or more: all of them are in memory at once.
        held_out: shard -> how many of its first images are not for training.
        resolutions: transforms to tensors of other sizes, of which ``training_loader`` gives each batch one.
        max_retries: how many replacements are tried for one sample.

    Raises ValueError if there are no shards or a number is out of range.
    """

    def __init__(
        self,
        shards: Shards,
        transform: Transform,
        channels: int,
        seed: int = 0,
        *,
        shuffle_block: int = 512,
        held_out: Mapping[int, int] | None = None,
        resolutions: Sequence[Transform] = (),
        max_retries: int = 16,
    ) -> None:
        check_seed(seed)
        if len(shards) == 0:
            raise ValueError("there are no shards")
        for name, value, least in (("shuffle_block", shuffle_block, 1), ("max_retries", max_retries, 0)):
            if value < least:
                raise ValueError(f"{name}={value} must be {least} or more")
        self.shards = shards
        self.transform = transform
        self.channels = channels
        self.seed = seed
        self.shuffle_block = shuffle_block
        self.held_out = dict(held_out or {})
        self.resolutions = tuple(resolutions)
        self.max_retries = max_retries
        self._minimum_side = common_minimum_side([transform, *resolutions])

    def images(self, place: StreamPlace, start: int = 0) -> Iterator[StreamedImage]:
        """Yields a reader's images from number ``start`` of its sequence on, without end, not decoded.

        The images before are skipped: whole shards by their counts; of the shard in which ``start`` lies, up
        to ``shuffle_block`` images are read again.
        """
        first, offset = divmod(start, self.shuffle_block)
        in_order = self._in_order(place, first * self.shuffle_block)
        for number in itertools.count(first):
            block = list(itertools.islice(in_order, self.shuffle_block))
            encoded = [image for _, _, image in block]
            order = generator(place.seed, BLOCK, place.reader, number).permutation(len(block))
            for position in order[offset:]:
                epoch, index, image = block[position]
                yield StreamedImage(epoch, index, image, encoded)
            offset = 0

    def sample(self, image: StreamedImage, resolution: int | None = None) -> Sample:
        """Makes the sample of an image from ``images``; its ``index`` is unique to the image.

        Raises BrokenImageError if neither the image nor any replacement can be decoded.
        """
        return make_sample(
            self._candidates(image),
            self.transform if resolution is None else self.resolutions[resolution],
            generator(self.seed, SAMPLE, image.epoch, image.index),
            channels=self.channels,
            minimum_side=self._minimum_side,
            index=image.index,
        )

    def _candidates(self, image: StreamedImage) -> Iterator[EncodedImage]:
        yield image.encoded
        replacements = generator(self.seed, REPLACEMENT, image.epoch, image.index)
        for _ in range(self.max_retries):
            yield image.block[int(replacements.integers(len(image.block)))]

    def _in_order(self, place: StreamPlace, skip: int) -> Iterator[tuple[int, int, EncodedImage]]:
        """Yields (epoch, index, image) of a reader, not shuffled, from number ``skip`` on."""
        barren = 0
        for epoch in itertools.count():
            barren += 1
            for piece in epoch_pieces(len(self.shards), place, epoch):
                first = self.held_out.get(piece.shard, 0) + piece.offset
                if skip:
                    length = len(range(first, self.shards.count(piece.shard), piece.step))
                    if skip >= length:
                        skip -= length
                        barren = barren if length == 0 else 0
                        continue
                for image in self.shards.read(piece.shard, first + skip * piece.step, piece.step):
                    yield epoch, (piece.shard << _ROW_BITS) + image.row, image
                    barren = 0
                skip = 0
            if barren > _MOST_BARREN_EPOCHS:
                raise BrokenImageError(f"the {len(self.shards)} shard(s) hold no image to train on")


def read_first(shards: Shards, count: int, held_out: Mapping[int, int] | None = None) -> EncodedSource:
    """Reads about ``count`` images into memory: equally many from the beginnings of up to 16 shards.

    The shards are spread evenly over all. Images that are held out do not count. The result is always the
    same, and smaller if shards have fewer images.
    """
    chosen = min(count, len(shards), _MOST_SAMPLED_SHARDS)
    images: list[EncodedImage] = []
    for number in range(chosen):
        shard = number * len(shards) // chosen
        wanted = count * (number + 1) // chosen - count * number // chosen
        images += itertools.islice(shards.read(shard, (held_out or {}).get(shard, 0)), wanted)
    return EncodedSource(images)


def sample_dataset(dataset: ImageDataset | ImageStream, count: int = 2048) -> ImageDataset:
    """Returns a dataset itself; for a stream, a dataset of about ``count`` of its training images.

    Raises ValueError if there is no image.
    """
    if isinstance(dataset, ImageDataset):
        return dataset
    source = read_first(dataset.shards, count, dataset.held_out)
    return ImageDataset(source, dataset.transform, dataset.channels, dataset.seed, dataset.max_retries)


def epoch_size(dataset: ImageDataset | ImageStream) -> int:
    """Returns the number of images per epoch; for a stream an estimate, found with little work."""
    if isinstance(dataset, ImageDataset):
        return len(dataset)
    return max(1, len(dataset.shards) * dataset.shards.typical_count() - sum(dataset.held_out.values()))


def describe_size(dataset: ImageDataset | ImageStream) -> str:
    """Says how much data there is, to stand before the word "images": ``1200``, or ``32 shards of``."""
    if isinstance(dataset, ImageDataset):
        return str(len(dataset))
    shards = len(dataset.shards)
    return f"{shards} shard{'s' if shards > 1 else ''} of"
