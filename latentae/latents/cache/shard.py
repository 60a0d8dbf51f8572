"""One shard: tensors of some images, their names, labels and captions, in one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from latentae.files import write_aside
from latentae.latents.cache.folder import ShardEntry


def write_shard(
    path: Path, tensors: dict[str, Tensor], *, texts: dict[str, list[str]], skipped: list[str]
) -> None:
    """Writes a shard whole, or not at all.

    Args:
        tensors: [n, ...] each, on the CPU.
        texts: n texts by name.
        skipped: about images that are not in it.
    """
    packed = {key: value for name, rows in texts.items() for key, value in _pack(name, rows).items()}
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_aside(path, save({**contiguous, **packed}, {"skipped": json.dumps(skipped)}))


def is_whole(path: Path) -> bool:
    """Whether a shard is there and not cut short."""
    try:
        with safe_open(path, framework="pt"):
            return True
    except (OSError, SafetensorError):
        return False


def describe_shard(path: Path, size: tuple[int, int]) -> tuple[ShardEntry, list[str]]:
    """A finished shard's entry in the index, and what it says about images that are not in it."""
    with safe_open(path, framework="pt") as file:
        names = file.keys()
        images = len(file.get_tensor("indices"))
        first = next((name for name in ("mean", "codes") if name in names), None)
        shape = [] if first is None else list(file.get_slice(first).get_shape()[1:])
        skipped = json.loads(file.metadata()["skipped"])
    return ShardEntry(path.name, path.stat().st_size, images, shape, list(size)), skipped


def shard_names(path: Path) -> set[str]:
    """What tensors a shard holds."""
    with safe_open(path, framework="pt") as file:
        return set(file.keys())


class ShardReader:
    """Reads rows of a shard that is mapped into memory.

    Args:
        path: of the shard.
        entry: what the index says of it.

    Raises:
        ValueError: it is not there, or cut short.
    """

    def __init__(self, path: Path, entry: ShardEntry) -> None:
        check_shard(path, entry)
        try:
            self._file = safe_open(path, framework="pt")
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path} is damaged ({error}): {_REMEDY}") from error
        self.names = set(self._file.keys())
        self._slices: dict[str, Any] = {}
        self._texts: dict[str, tuple[Tensor, list[int]]] = {}

    def row(self, name: str, position: int) -> Tensor:
        """Row ``position`` of a tensor."""
        if name not in self._slices:
            self._slices[name] = self._file.get_slice(name)
        row: Tensor = self._slices[name][position]
        return row

    def text(self, name: str, position: int) -> str:
        """Text ``position`` of some texts."""
        if name not in self._texts:
            ends = self._file.get_tensor(f"{name}_ends").tolist()
            self._texts[name] = (self._file.get_tensor(name), [0, *ends])
        characters, bounds = self._texts[name]
        part = characters[bounds[position] : bounds[position + 1]]
        return part.numpy().tobytes().decode(errors="surrogateescape")

    def whole(self, name: str) -> Tensor:
        """A whole tensor [n, ...]."""
        tensor: Tensor = self._file.get_tensor(name)
        return tensor


_REMEDY = "remove the file, and the command that encoded the latents makes this shard anew"


def check_shard(path: Path, entry: ShardEntry) -> None:
    """Raises ValueError, with a remedy, unless a shard is there and as long as the index says."""
    if not path.is_file():
        raise ValueError(f"{path} is missing: the command that encoded the latents makes this shard anew")
    size = path.stat().st_size
    if size != entry.bytes:
        what = "cut short" if size < entry.bytes else "changed"
        raise ValueError(f"{path} is {what}: {size} bytes of {entry.bytes}; {_REMEDY}")


def _pack(name: str, rows: Sequence[str]) -> dict[str, Tensor]:
    encoded = [row.encode(errors="surrogateescape") for row in rows]
    ends = np.cumsum([len(row) for row in encoded], dtype=np.int64)
    characters = torch.from_numpy(np.frombuffer(b"".join(encoded), np.uint8).copy())
    return {name: characters, f"{name}_ends": torch.from_numpy(ends)}
