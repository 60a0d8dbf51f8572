"""Shards: files of many images each, which are read from front to back; and their order for each reader."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from latentae.data.samples import EncodedImage
from latentae.data.seeding import SHARDS, generator


class Shards(Protocol):
    """Data in several parts, each a sequence of images that is cheapest to read from its beginning.

    It is pickled to the loader's workers.
    """

    def __len__(self) -> int:
        """How many shards there are."""

    def label(self, shard: int) -> str:
        """What to call a shard; the same on every machine."""

    def describe(self) -> str:
        """Where the images are; for people."""

    def count(self, shard: int) -> int:
        """How many images a shard has, without decoding them; may take reading it."""

    def typical_count(self) -> int:
        """About how many images a shard has: the same number whenever it is asked, found with little work."""

    def read(self, shard: int, start: int = 0, step: int = 1) -> Iterator[EncodedImage]:
        """The images `start`, `start` + `step`, ... of a shard, not decoded; `row` says which each is.

        Where the rest of a shard is damaged, its last image is one that cannot be decoded, and says so.
        Raises BrokenImageError where the shard cannot be reached.
        """


@dataclass(frozen=True)
class StreamPlace:
    """Which of a stream's readers one is: every process that decodes is a reader of its own.

    Attributes:
        seed: of the order.
        reader: from 0.
        readers: how many there are, over all ranks and workers.
    """

    seed: int
    reader: int = 0
    readers: int = 1


@dataclass(frozen=True)
class Piece:
    """The images `offset`, `offset` + `step`, ... of a shard."""

    shard: int
    offset: int
    step: int


def epoch_pieces(num_shards: int, place: StreamPlace, epoch: int) -> list[Piece]:
    """What a reader goes through in an epoch, in order; all readers together have each image once.

    The shards are dealt out in a random order that (seed, epoch) gives. Where there are fewer of them than
    readers, each is shared by several, of which each takes every `step`-th image. Who is dealt one more
    than others changes from epoch to epoch, so that all readers come along equally fast in the long run.
    """
    step = -(-place.readers // num_shards)
    order = generator(place.seed, SHARDS, epoch).permutation(num_shards * step)
    mine = order[(place.reader + epoch) % place.readers :: place.readers]
    return [Piece(int(number) // step, int(number) % step, step) for number in mine]
