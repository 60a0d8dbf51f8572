"""The tensors in a file of weights, whatever its name ends in, without running anything it holds."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from latentae.models.checkpoints.recognise import describe_bytes
from latentae.models.checkpoints.stubs import inert_globals

# Where trainers put the weights among the rest of their state.
_STATE_KEYS = ("state_dict", "model_state_dict", "model", "module", "params")
_DEEPEST = 4  # mappings around the tensors
_LONGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors format


@dataclass
class Checkpoint:
    """What a file of weights holds.

    Attributes:
        tensors: by name, on the CPU; most stay in the file until they are used.
        metadata: the texts that a safetensors file carries; empty for other formats.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a safetensors file, or one that ``torch.save`` wrote; which of them, its first bytes tell.

    Of a trainer's checkpoint, the state dict is returned. Pickles are read with ``weights_only=True``; the
    trainers' own classes that genuine checkpoints name are replaced by inert ones.

    Raises:
        ValueError: the file is neither, is cut off or damaged, names anything else than tensors and the
            listed classes, or holds no tensors.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(512)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _LONGEST_HEADER:
        checkpoint = _read_safetensors(path, size)
    elif head.startswith((b"PK\x03\x04", b"\x80")):
        checkpoint = Checkpoint(_state_dict(path, _read_pickle(path, zipped=head.startswith(b"PK"))))
    else:
        raise ValueError(f"{path} is no file of weights: it {describe_bytes(head)}")
    if not checkpoint.tensors:
        raise ValueError(f"{path} holds no tensors")
    return checkpoint


def _read_safetensors(path: Path, size: int) -> Checkpoint:
    expected = _safetensors_size(path, size)
    if size < expected:
        raise ValueError(f"{path} is cut off: {size} bytes are there of at least {expected}. Fetch it again")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return Checkpoint({name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is a damaged safetensors file: {error}") from error


def _safetensors_size(path: Path, size: int) -> int:
    """Bytes the file has at least by its header; 0 where that cannot be read, which safe_open explains."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 + length:
            return 8 + length
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            return 0
    return 8 + length + max(ends, default=0)


def _read_pickle(path: Path, *, zipped: bool) -> Any:
    if zipped:
        _check_archive(path)
    # Mapping leaves in the file what is not used. By a name in .safetensors torch would take it for one.
    mapped = zipped and path.suffix != ".safetensors"
    try:
        with torch.serialization.safe_globals(inert_globals()), path.open("rb") as file:
            return torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a damaged pickle can fail in any way; each becomes one that names the file
        raise ValueError(f"{path} {_pickle_problem(error)}") from error


def _check_archive(path: Path) -> None:
    """Raises ValueError for an archive that ``torch.save`` did not write whole."""
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is cut off: the archive's end is missing. Fetch it again")
    try:
        with zipfile.ZipFile(path) as archive:
            names = {Path(name).name for name in archive.namelist()}
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is a damaged archive: {error}. Fetch it again") from error
    if "constants.pkl" in names:
        raise ValueError(
            f"{path} is a TorchScript program. Save the state dict of the model it was made from"
        )
    if "data.pkl" not in names:
        raise ValueError(
            f"{path} is an archive that torch.save did not write: it holds {', '.join(sorted(names)[:3])}"
        )


def _pickle_problem(error: Exception) -> str:
    message = str(error)
    if refused := re.search(r"GLOBAL (\S+)", message):
        return (
            f"is a pickle that names {refused[1]}, which is no tensor and could run code: it was refused, "
            "and nothing was run. Whoever trusts it can save the state dict in it with safetensors"
        )
    if isinstance(error, pickle.UnpicklingError):
        return f"is a pickle that holds more than tensors, or is damaged. Nothing was run: {_gist(message)}"
    return f"is damaged, cut off, or was not written by torch.save: {_gist(message)}"


def _gist(message: str) -> str:
    """The part of torch's message that says what happened, on one line."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith("WeightsUnpickler error")]
    return (telling or lines or ["no reason given"])[0][:200]


def _state_dict(path: Path, content: Any) -> dict[str, Tensor]:
    """The tensors of a state dict that may lie inside of a trainer's checkpoint."""
    for _ in range(_DEEPEST):  # a pickle can also hold itself
        if not isinstance(content, Mapping):
            break
        inner = [content[key] for key in _STATE_KEYS if isinstance(content.get(key), Mapping)]
        if not inner:
            return {
                name: value
                for name, value in content.items()
                if isinstance(name, str) and isinstance(value, Tensor)
            }
        content = inner[0]
    raise ValueError(f"{path} holds a {type(content).__name__} where a state dict must be")
