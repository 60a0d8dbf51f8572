"""Keep a share of a source's images out of training, for validation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentae.data.image_source import ImageSource, SubsetSource


@dataclass(frozen=True)
class HeldOut:
    """What a run has held out, as far as the share does not say it: with it more data move no image.

    Attributes:
        images: key of an image -> whether it is held out, whatever its hash says.
        shards: label of a stream's shard -> how many of its first images are held out.
        by_name: whether images are told apart by the names that messages have for them, and not by their
            keys, as runs did whose folder has no record of this.
    """

    images: dict[str, bool] = field(default_factory=dict)
    shards: dict[str, int] = field(default_factory=dict)
    by_name: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON has it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> HeldOut:
        """What `to_dict` gave. Raises ValueError if it is something else."""
        try:
            return cls(dict(record["images"]), dict(record["shards"]), bool(record["by_name"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"this is no record of held-out images: {error!r}") from error


def split_holdout(source: ImageSource, share: float, seed: int = 0) -> tuple[SubsetSource, SubsetSource]:
    """Divide `source` into (training, validation), about `share` of its images in the latter.

    An image is held out when the hash of (seed, its key) falls below `share`: a property of the image
    alone, so it does not change with workers or ranks, nor move to the other side when
    images are added. Its key is `source.key(index)` where the source has that, else its name. At least one
    image is on each side: for what few images need for that, see `hold_out`.

    Raises ValueError unless 0 < share < 1 and there are two images.
    """
    training, validation, _ = hold_out(source, share, seed)
    return training, validation


def hold_out(
    source: ImageSource, share: float, seed: int = 0, before: HeldOut | None = None
) -> tuple[SubsetSource, SubsetSource, HeldOut]:
    """`split_holdout`, and what to give as `before` when there are more images.

    Few images may all have a hash above `share`. Then the one with the lowest is held out, until another
    has a lower one: `before` keeps the former held out all the same.
    """
    if not 0 < share < 1:
        raise ValueError(
            f"holdout={share} must lie between 0 and 1: the share of the images kept for validation"
        )
    if len(source) < 2:
        raise ValueError(
            f"{len(source)} image(s) are too few to hold one out for validation; give the data a "
            "validation split, e.g. subfolders train/ and val/"
        )
    before = before or HeldOut()
    key: Callable[[int], str] = source.name if before.by_name else getattr(source, "key", source.name)
    hashes = np.empty(len(source))
    held_out = np.empty(len(source), np.bool_)
    for index in range(len(source)):
        own = key(index)
        hashes[index] = _hash(own, seed)
        held_out[index] = before.images.get(own, hashes[index] < share)
    forced = dict(before.images)
    if not held_out.any():
        forced |= _force(held_out, int(hashes.argmin()), True, key)
    if held_out.all():
        forced |= _force(held_out, int(hashes.argmax()), False, key)
    training, validation = (SubsetSource(source, np.flatnonzero(part)) for part in (~held_out, held_out))
    return training, validation, HeldOut(forced, before.shards, before.by_name)


def _force(
    held_out: NDArray[np.bool_], index: int, value: bool, key: Callable[[int], str]
) -> dict[str, bool]:
    """Puts an image on one side; returns its entry for the record."""
    held_out[index] = value
    return {key(index): value}


def _hash(name: str, seed: int) -> float:
    """A number in [0, 1) that is spread evenly over names, the same in every process and Python."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(errors="surrogateescape"), digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48
