"""What has been measured so far, on disk: an interrupted evaluation goes on from there."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from latentae.evaluation.blocks import Block
from latentae.files import write_aside


class Shards:
    """One file a block, in a folder that only equal measurements share.

    Args:
        root: where such folders lie.
        name: for people.
        fingerprint: everything that the numbers depend on; another fingerprint is another folder.
    """

    def __init__(self, root: Path, name: str, fingerprint: str) -> None:
        self.folder = (
            root / f"{name}-{hashlib.sha256(fingerprint.encode(errors='surrogateescape')).hexdigest()[:16]}"
        )

    def path(self, number: int | str) -> Path:
        """The file of a block."""
        return self.folder / f"{number if isinstance(number, str) else f'{number:06d}'}.safetensors"

    def has(self, number: int | str) -> bool:
        """Whether a block is there, whole."""
        return self.load(number) is not None

    def load(self, number: int | str) -> dict[str, Tensor] | None:
        """A block's tensors; None where it is missing or damaged."""
        try:
            with safe_open(self.path(number), framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
        except (OSError, SafetensorError):
            return None

    def store(self, number: int | str, tensors: dict[str, Tensor]) -> None:
        """Writes a block aside and renames it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = save({name: tensor.contiguous() for name, tensor in tensors.items()})
        write_aside(self.path(number), content)


def content_sha256(block: Block) -> str:
    """A hash of a block's pixels."""
    digest = hashlib.sha256()
    for image in block.images:
        digest.update(f"{list(image.shape)}".encode())
        digest.update(image.contiguous().numpy().data)
    return digest.hexdigest()


def from_text(text: str) -> Tensor:
    """[n] uint8, the only thing that a shard can hold."""
    return torch.from_numpy(np.frombuffer(text.encode(errors="surrogateescape"), np.uint8).copy())


def to_text(tensor: Tensor) -> str:
    """What ``from_text`` was given."""
    return tensor.numpy().tobytes().decode(errors="surrogateescape")


def reference_cache() -> Path:
    """The folder in which all evaluations keep the features of originals."""
    root = (
        os.environ.get("LATENTAE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "latentae"
    )
    return Path(root).expanduser() / "reference_features"
