"""A stream of training samples from shards that are read front to back, shuffled in blocks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from latentae.data.decode import BrokenImageError
from latentae.data.samples import EncodedImage, Sample, make_sample
from latentae.data.seeding import BLOCK, REPLACEMENT, SAMPLE, check_seed, generator
from latentae.data.shards import Shards, StreamPlace, epoch_pieces
from latentae.data.transforms import Transform, common_minimum_side

_MOST_BARREN_EPOCHS = 1000  # a reader's part of one epoch may well be empty, but not of this many in a row
_ROW_BITS = 32


@dataclass(frozen=True)
class StreamedImage:
    """An image of a stream, and the block around it, whose images stand in for it if it is broken."""

    epoch: int
    index: int
    encoded: EncodedImage
    block: Sequence[EncodedImage]


class ImageStream:
    """Samples of shards, for data that is too large or too far away to be indexed or copied.

    Every reader goes through an endless sequence of its own: `epoch_pieces` of epoch 0, then of epoch 1 and
    so on, cut into blocks of `shuffle_block` images. A block is read into memory, not decoded, and its
    images are taken in an order that (seed, reader, number of the block) gives. The whole state of a
    reader is therefore how many images it has had. Each image comes once an epoch; readers do not wait for
    one another at its end, so they may be in different epochs for a while.

    Crop and flip depend on (seed, epoch, image), as those of an `ImageDataset` do, and so does which image
    of its block replaces a broken one.

    Args:
        shards: the data.
        transform: makes the tensor, e.g. `RandomCrop`.
        channels: 1 or more; see `decode_image`.
        seed: of crops and flips, 0 or more.
        shuffle_block: images that are shuffled together, 1 or more: all of them are in memory at once.
        held_out: shard -> how many of its first images are not for training.
        resolutions: transforms to tensors of other sizes, of which `training_loader` gives each batch one.
        max_retries: how many replacements are tried for one sample.

    Raises ValueError if there are no shards or a number is out of its range.
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
        """A reader's images from number `start` of its sequence on, for ever, not decoded.

        What lies before is skipped: whole shards by their counts, of the shard that it begins in up to
        `shuffle_block` images are read over again.
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
        """The sample of an image that `images` gave; its `index` is unique to the image.

        Raises BrokenImageError: neither the image nor any replacement could be decoded.
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
        """(epoch, index, image) of a reader without the shuffle, from number `skip` on."""
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
