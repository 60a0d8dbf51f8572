"""Random generators keyed by (seed, purpose, position): no draw depends on which rank or worker draws."""

from __future__ import annotations

import numpy as np
import torch

SAMPLE = 0  # crop and flip of one sample
REPLACEMENT = 1  # which image replaces a broken one
ORDER = 2  # the permutation of one epoch
POSTERIOR = 3  # the noise of one image's posterior
RESOLUTION = 4  # the size of one batch's images
SHARDS = 5  # the order of a stream's shards in one epoch
BLOCK = 6  # the order of the images in one block of a stream
# Of a probe's denoiser:
DENOISER_STEP = 7  # the noise, times and dropped labels of one training step
HELD_OUT_NOISE = 8  # the noise of held-out latents
HELD_OUT_TIMES = 9  # the order of their times
GENERATED = 10  # the noise that one generated image starts from
GENERATED_LABELS = 11  # the labels of generated images
REAL_HALVES = 12  # how real images are divided, to be compared with each other


def generator(seed: int, purpose: int, *position: int) -> np.random.Generator:
    """Returns the generator for one purpose at one position, e.g. ``generator(seed, SAMPLE, epoch, index)``.

    The position is a spawn key and not part of the entropy: numpy pads entropy with zeros, so that
    (seed, epoch) and (seed, epoch, 0) would give the same numbers.
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(purpose, *position)))


def torch_generator(seed: int, purpose: int, *position: int) -> torch.Generator:
    """Returns torch's generator, on the CPU, for one purpose at one position."""
    # torch's generator uses only the lower 32 bits of its seed, so they must depend on the whole key.
    key = np.random.SeedSequence(seed, spawn_key=(purpose, *position))
    return torch.Generator().manual_seed(int(key.generate_state(1)[0]))


def check_seed(seed: int) -> None:
    """Raises ValueError for a negative seed, which numpy does not accept."""
    if seed < 0:
        raise ValueError(f"seed={seed} must be 0 or more")
