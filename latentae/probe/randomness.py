"""Random numbers as functions of (seed, what for, position): a step draws the same whatever came before."""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, purpose: str, *position: int) -> torch.Generator:
    """The generator on the CPU of one purpose at one position, e.g. ``generator(seed, "noise", step)``."""
    return torch.Generator().manual_seed(number(seed, purpose, *position))


def number(seed: int, purpose: str, *position: int) -> int:
    """The number that such a generator starts from, in [0, 2⁶³)."""
    text = ":".join([str(seed), purpose, *map(str, position)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
