"""Keeps a share of the images out of training, for validation."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from latentae.data.source import EncodedSource, ImageSource, SubsetSource
from latentae.data.stream import Shards


@dataclass(frozen=True)
class HeldOut:
    """Records what a run has held out beyond what the share says, so that new data move no image.

    Attributes:
        images: key of an image -> whether it is held out, whatever its hash says.
        shards: label of a stream's shard -> how many of its first images are held out.
        by_name: whether images are identified by their names in messages and not by their keys, as in runs
            whose folder has no such record.
    """

    images: dict[str, bool] = field(default_factory=dict)
    shards: dict[str, int] = field(default_factory=dict)
    by_name: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Returns the record for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> HeldOut:
        """Reverses `to_dict`. Raises ValueError if the record is something else."""
        try:
            return cls(dict(record["images"]), dict(record["shards"]), bool(record["by_name"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"this is no record of held-out images: {error!r}") from error


def split_holdout(source: ImageSource, share: float, seed: int = 0) -> tuple[SubsetSource, SubsetSource]:
    """Divides ``source`` into (training, validation), with about ``share`` of its images in the latter.

    An image is held out if the hash of (seed, its key) is below ``share``. This depends on the image alone:
    not on workers or ranks, and no image changes sides when images are added. The key is
    ``source.key(index)`` if the source has this method, else the name. Each side has at least one image:
    ``hold_out`` says how.

    Raises ValueError unless 0 < share < 1 and there are two images.
    """
    training, validation, _ = hold_out(source, share, seed)
    return training, validation


def hold_out(
    source: ImageSource, share: float, seed: int = 0, before: HeldOut | None = None
) -> tuple[SubsetSource, SubsetSource, HeldOut]:
    """Does ``split_holdout``; also returns the record to give as ``before`` when there are more images.

    If all hashes of a few images are above ``share``, the image with the lowest is held out. When images are
    added, another may have the lowest; ``before`` keeps the first one held out all the same.
    """
    _check_share(share)
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
    # Neither side may be empty.
    forced = dict(before.images)
    for is_held_out, extreme in ((True, hashes.argmin), (False, hashes.argmax)):
        if not (held_out == is_held_out).any():
            index = int(extreme())
            held_out[index] = forced[key(index)] = is_held_out
    training, validation = (SubsetSource(source, np.flatnonzero(part)) for part in (~held_out, held_out))
    return training, validation, HeldOut(forced, before.shards, before.by_name)


def _check_share(share: float) -> None:
    if not 0 < share < 1:
        raise ValueError(
            f"holdout={share} must lie between 0 and 1: the share of the images kept for validation"
        )


def _hash(name: str, seed: int) -> float:
    """Returns a number in [0, 1), spread evenly over names, the same in every process and Python version."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(errors="surrogateescape"), digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48


def choose_held_out(
    shards: Shards, share: float, most: int, before: Mapping[str, int] | None = None
) -> dict[int, int]:
    """Chooses how many images at the beginning of each shard to keep out of training; omits shards with none.

    From the first shard with images on, each gives the share ``share`` of a typical shard (at least one
    image), until ``share`` of all images, and at most ``most``, are held out. The choice depends on the data,
    ``share``, ``most`` and ``before`` only.

    Args:
        before: label of a shard -> how many of its images were held out when there were fewer shards; None
            or empty: choose anew.

    Raises ValueError unless 0 < share < 1 and there are two images.
    """
    _check_share(share)
    remembered = _still_held_out(shards, before) if before else {}
    if remembered:
        return remembered
    typical = shards.typical_count()
    if typical * len(shards) < 2:
        raise ValueError(
            f"{typical * len(shards)} image(s) are too few to hold one out for validation; give the data a "
            "validation split"
        )
    first = next((shard for shard in range(len(shards)) if any(True for _ in shards.read(shard))), 0)
    quota = max(1, int(share * typical))
    wanted = min(most, max(1, int(share * typical * len(shards))), quota * (len(shards) - first))
    full, rest = divmod(wanted, quota)
    return dict.fromkeys(range(first, first + full), quota) | ({first + full: rest} if rest else {})


def _still_held_out(shards: Shards, before: Mapping[str, int]) -> dict[int, int]:
    """Finds the shards of which images were held out before.

    A label is a path relative to the folder that all shards have in common, which new shards may change. So
    two labels are the same shard if one path ends in the other.
    """
    held_out = {}
    for shard in range(len(shards)):
        label = f"/{shards.label(shard)}"
        counts = [n for old, n in before.items() if label.endswith(f"/{old}") or f"/{old}".endswith(label)]
        if counts:
            held_out[shard] = max(counts)
    return held_out


def read_held_out(shards: Shards, held_out: Mapping[int, int]) -> EncodedSource:
    """Reads the images that ``choose_held_out`` has chosen into memory."""
    return EncodedSource(
        [image for shard, count in held_out.items() for image in itertools.islice(shards.read(shard), count)]
    )
