"""Keep a share of a source's images out of training, for validation."""

from __future__ import annotations

import hashlib

import numpy as np

from latentae.data.image_source import ImageSource, SubsetSource


def split_holdout(source: ImageSource, share: float, seed: int = 0) -> tuple[SubsetSource, SubsetSource]:
    """Divide `source` into (training, validation), about `share` of its images in the latter.

    An image is held out when the hash of (seed, its name) falls below `share`: a property of the image
    alone, so it does not change with workers or ranks, nor move to the other side when
    images are added. At least one image is on each side.

    Raises ValueError unless 0 < share < 1 and there are two images.
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
    hashes = np.fromiter((_hash(source.name(index), seed) for index in range(len(source))), np.float64)
    held_out = hashes < share
    held_out[hashes.argmin()] = True
    held_out[hashes.argmax()] = False
    return SubsetSource(source, np.flatnonzero(~held_out)), SubsetSource(source, np.flatnonzero(held_out))


def _hash(name: str, seed: int) -> float:
    """A number in [0, 1) that is spread evenly over names, the same in every process and Python."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(errors="surrogateescape"), digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48
