"""The tensors in a file of weights, whatever its name ends in, without running anything it holds."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from latentae.models.checkpoints.contents import is_average
from latentae.models.checkpoints.recognise import describe_bytes
from latentae.models.checkpoints.stubs import inert_globals
from latentae.models.plain import clean_name, clean_names

_DEEPEST = 4  # mappings around the tensors
_LONGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors format


@dataclass
class Checkpoint:
    """What a file of weights holds.

    Attributes:
        tensors: by name, on the CPU; most stay in the file until they are used. Names are without the parts
            that wrappers such as torch.compile put into them. Where a pickle holds several mappings, the
            mapping's own name comes first: ``ema.encoder.conv_in.weight``.
        metadata: the texts that a safetensors file carries; empty for other formats.
        mappings: these names of mappings, each ending in a dot, of those that hold tensors themselves.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    mappings: tuple[str, ...] = ()

    def mapping_of(self, prefix: str) -> dict[str, Tensor]:
        """The tensors of the innermost mapping around all that is under ``prefix``, by their names in it."""
        around = max((name for name in self.mappings if prefix.startswith(name)), key=len, default="")
        return {
            name.removeprefix(around): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(around)
        }


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a safetensors file, or one that ``torch.save`` wrote; which of them, its first bytes tell.

    Of a trainer's checkpoint, the tensors of all its mappings are returned. Pickles are read with
    ``weights_only=True``; the trainers' own classes that genuine checkpoints name are replaced by inert ones.

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
        checkpoint = _unpack(path, _read_pickle(path, zipped=head.startswith(b"PK")))
    else:
        raise ValueError(f"{path} is no file of weights: it {describe_bytes(head)}")
    if not checkpoint.tensors:
        raise ValueError(f"{path} holds no tensors")
    try:
        checkpoint.tensors = clean_names(checkpoint.tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return checkpoint


def read_metadata(path: Path) -> dict[str, str]:
    """The texts that a safetensors file carries; empty for other formats, and for a damaged file."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return file.metadata() or {}
    except SafetensorError:
        return {}


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


def _unpack(path: Path, content: Any) -> Checkpoint:
    """The tensors of a pickle's mappings, without the name of a mapping that holds all the others."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__} where a state dict must be")
    mappings = dict(_mappings(content, "", _DEEPEST, set()))
    if not mappings:
        raise ValueError(f"{path} holds no tensors: {_entries(content)}")
    outer = _common_start(list(mappings))
    if is_average(outer):  # that these are averages is worth knowing
        outer = ""
    tensors = {
        f"{name.removeprefix(outer)}{key}": tensor
        for name, held in mappings.items()
        for key, tensor in held.items()
    }
    names = (clean_name(name.removeprefix(outer)) for name in mappings)
    return Checkpoint(tensors, mappings=tuple(name for name in names if name))


def _mappings(
    content: Mapping[Any, Any], name: str, depth: int, seen: set[int]
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(name, tensors) of every mapping that holds tensors itself, each once: one can hold itself."""
    if id(content) in seen:
        return
    seen.add(id(content))
    named = {key: value for key, value in content.items() if isinstance(key, str)}
    held = {key: value for key, value in named.items() if isinstance(value, Tensor)}
    if held:
        yield name, held
    for key, value in named.items():
        if depth and isinstance(value, Mapping):
            yield from _mappings(value, f"{name}{key}.", depth - 1, seen)


def _common_start(names: list[str]) -> str:
    """The longest of the names, or of the mappings around them, that all of them start with."""
    first = names[0]
    ends = [match.end() for match in re.finditer(r"\.", first)]
    return next((first[:end] for end in reversed(ends) if all(x.startswith(first[:end]) for x in names)), "")


def _entries(content: Mapping[Any, Any]) -> str:
    """The first entries of a mapping, with the type of each."""
    shown = [f"{str(key)[:40]} ({type(value).__name__})" for key, value in list(content.items())[:6]]
    more = f" and {len(content) - len(shown)} more" if len(content) > len(shown) else ""
    return f"its entries are {', '.join(shown)}{more}" if shown else "it is an empty mapping"
