"""Random numbers as functions of (seed, what for, position), so that no draw depends on who draws it."""

from __future__ import annotations

import numpy as np

SAMPLE = 0  # crop and flip of one sample
REPLACEMENT = 1  # which image stands in for a broken one
ORDER = 2  # the permutation of one epoch
POSTERIOR = 3  # the noise of one image's posterior
RESOLUTION = 4  # the size of one batch's images
SHARDS = 5  # the order of a stream's shards in one epoch
BLOCK = 6  # the order of the images in one block of a stream


def generator(seed: int, purpose: int, *position: int) -> np.random.Generator:
    """The generator of one purpose at one position, e.g. `generator(seed, SAMPLE, epoch, index)`.

    The position is a spawn key and not part of the entropy: numpy pads entropy with zeros, so that
    (seed, epoch) and (seed, epoch, 0) would give the same numbers.
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(purpose, *position)))


def check_seed(seed: int) -> None:
    """Raise ValueError for a negative seed, which numpy cannot use."""
    if seed < 0:
        raise ValueError(f"seed={seed} must be 0 or more")
