"""Reads the tensors in a file of weights, whatever its name ends in, without running any code in it."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from latentae.models.checkpoints.layouts import is_average
from latentae.models.plain import clean_name, clean_names

_MAX_DEPTH = 4  # of mappings around the tensors
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format

# Formats that are often mistaken for weights, by the first bytes of the file.
_OTHER_FORMATS = {
    b"version https://git-lfs": "is a Git LFS pointer in place of the file: run git lfs pull",
    b"GGUF": "is a GGUF file",
    b"\x89PNG": "is a PNG image",
    b"\xff\xd8\xff": "is a JPEG image",
    b"\x1f\x8b": "is a gzip archive",
    b"7z\xbc\xaf": "is a 7-Zip archive",
    b"Rar!": "is a RAR archive",
    b"\x89HDF": "is an HDF5 file",
    b"\x93NUMPY": "is a NumPy array",
}


@dataclass
class Checkpoint:
    """The contents of a file of weights.

    Attributes:
        tensors: by name, on the CPU; most stay in the file until they are used. Names are without the parts
            that wrappers such as torch.compile add. Where a pickle holds several mappings, the mapping's own
            name comes first: ``ema.encoder.conv_in.weight``.
        metadata: the strings that a safetensors file carries; empty for other formats.
        mappings: the names of those mappings that hold tensors themselves, each ending in a dot.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    mappings: tuple[str, ...] = ()

    def mapping_of(self, prefix: str) -> dict[str, Tensor]:
        """Returns the tensors of the innermost mapping around ``prefix``, by their names in that mapping."""
        around = max((name for name in self.mappings if prefix.startswith(name)), key=len, default="")
        return {
            name.removeprefix(around): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(around)
        }


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a safetensors file or a file that ``torch.save`` wrote; the first bytes tell which it is.

    The tensors of all mappings in a trainer's checkpoint are returned. Pickles are read with
    ``weights_only=True``. The trainers' own classes that genuine checkpoints name are replaced by inert ones.

    Raises:
        ValueError: the file has another format, is truncated or damaged, names anything other than tensors
            and the listed classes, or holds no tensors.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(512)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _MAX_HEADER_BYTES:
        checkpoint = _read_safetensors(path, size)
    elif head.startswith((b"PK\x03\x04", b"\x80")):
        checkpoint = _unpack(path, _read_pickle(path, zipped=head.startswith(b"PK")))
    else:
        raise ValueError(f"{path} is not a file of weights: it {describe_bytes(head)}")
    if not checkpoint.tensors:
        raise ValueError(f"{path} holds no tensors")
    try:
        checkpoint.tensors = clean_names(checkpoint.tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return checkpoint


def read_metadata(path: Path) -> dict[str, str]:
    """Returns the strings that a safetensors file carries; none for other formats and damaged files."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return file.metadata() or {}
    except SafetensorError:
        return {}


def check_floating(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Checks that what becomes floating-point weights is stored as floating-point numbers.

    Integers belong to a quantized model. Without its scales they are not the weights.

    Args:
        state: the stored tensors.
        own: the model's tensors, under the same names.

    Raises:
        ValueError: some are not; the message names one and its type.
    """
    wrong = [
        name
        for name, tensor in state.items()
        if name in own and own[name].is_floating_point() and not tensor.is_floating_point()
    ]
    if wrong:
        kind = str(state[wrong[0]].dtype).removeprefix("torch.")
        raise ValueError(
            f"{len(wrong)} of {len(state)} tensors hold {kind} where weights are floating-point numbers, "
            f"such as {wrong[0]}: the file holds a quantized model, or is damaged. Save the weights as "
            "float32, float16 or bfloat16"
        )


def describe_bytes(head: bytes) -> str:
    """Says what a file that begins with these few hundred bytes is: "is empty", "is a PNG image"."""
    if not head:
        return "is empty"
    if not any(head):
        return "begins with zeros only: the download was probably never finished"
    for beginning, words in _OTHER_FORMATS.items():
        if head.startswith(beginning):
            return words
    text = head.decode("utf-8", errors="replace").strip()
    if text.lower().startswith(("<!doctype", "<html", "<head", "<?xml")):
        return "is a web page, such as a login or error page in place of the download"
    if all(character.isprintable() or character.isspace() for character in text):
        return f"is a text that begins {text[:40]!r}"
    return f"begins with the bytes {head[:8].hex(' ')}, which no format of weights does"


# --- safetensors ---


def _read_safetensors(path: Path, size: int) -> Checkpoint:
    expected = _safetensors_size(path, size)
    if size < expected:
        raise ValueError(
            f"{path} is cut off: it has {size} of at least {expected} bytes. Download or copy it again"
        )
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return Checkpoint({name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is a damaged safetensors file: {error}") from error


def _safetensors_size(path: Path, size: int) -> int:
    """Returns the smallest size that fits the header; 0 for a broken header, which safe_open explains."""
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


# --- pickles ---


class InertObject:
    """Stands in for a class that checkpoints name: takes any arguments and state, and keeps nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> InertObject:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


class InertMapping:
    """Stands in for a kind of dict: becomes an empty one, into which a pickle may put items."""

    def __new__(cls, *args: Any) -> dict[Any, Any]:  # type: ignore[misc]
        return {}


# What genuine checkpoints name besides tensors. Lightning keeps the states of callbacks under their classes,
# and hyperparameters as objects of the libraries that held them. None of it is needed, and none of these
# libraries is imported. Any name that is not listed is refused.
_LIGHTNING = ("pytorch_lightning", "lightning.pytorch")
_CALLBACKS = (
    "early_stopping.EarlyStopping",
    "lr_monitor.LearningRateMonitor",
    "model_checkpoint.ModelCheckpoint",
    "timer.Timer",
)
_OBJECTS = (
    *(f"{package}.callbacks.{name}" for package in _LIGHTNING for name in _CALLBACKS),
    "argparse.Namespace",
    *(f"builtins.{name}" for name in ("bool", "dict", "float", "int", "list", "str", "tuple")),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    "numpy.dtype",
    "numpy.ndarray",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    *(f"omegaconf.nodes.{name}Node" for name in ("Any", "Boolean", "Float", "Integer", "String")),
    *(
        f"{module}.{system}Path"
        for module in ("pathlib", "pathlib._local")
        for system in ("Posix", "Windows")
    ),
    "torch.torch_version.TorchVersion",
    "typing.Any",
)
_MAPPINGS = (
    "collections.defaultdict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
    *(f"{package}.utilities.parsing.AttributeDict" for package in _LIGHTNING),
)


def inert_globals() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Returns pairs (stand-in, name) for ``torch.serialization.safe_globals``."""
    return [*((InertObject, name) for name in _OBJECTS), *((InertMapping, name) for name in _MAPPINGS)]


def _read_pickle(path: Path, *, zipped: bool) -> Any:
    if zipped:
        _check_archive(path)
    # Memory-mapped, unused tensors stay in the file. torch takes any path in .safetensors for that format.
    mapped = zipped and path.suffix != ".safetensors"
    try:
        with torch.serialization.safe_globals(inert_globals()), path.open("rb") as file:
            return torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a damaged pickle can fail in any way; the message must name the file
        raise ValueError(f"{path} {_pickle_problem(error)}") from error


def _check_archive(path: Path) -> None:
    """Raises ValueError for an archive that ``torch.save`` did not write completely."""
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is cut off: the archive's end is missing. Download or copy it again")
    try:
        with zipfile.ZipFile(path) as archive:
            names = {Path(name).name for name in archive.namelist()}
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is a damaged archive: {error}. Download or copy it again") from error
    if "constants.pkl" in names:
        raise ValueError(f"{path} is a TorchScript program. Save the original model's state dict instead")
    if "data.pkl" not in names:
        raise ValueError(
            f"{path} is an archive that torch.save did not write: it holds {', '.join(sorted(names)[:3])}"
        )


def _pickle_problem(error: Exception) -> str:
    message = str(error)
    if refused := re.search(r"GLOBAL (\S+)", message):
        return (
            f"is a pickle that names {refused[1]}, which is not a tensor and could run code. The file was "
            "refused, and nothing was run. If you trust it, save its state dict with safetensors"
        )
    # Of torch's long message, the line that says what happened.
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith("WeightsUnpickler error")]
    reason = (telling or lines or ["no reason given"])[0][:200]
    if isinstance(error, pickle.UnpicklingError):
        return f"is a pickle that holds more than tensors, or is damaged. Nothing was run: {reason}"
    return f"is damaged, cut off, or was not written by torch.save: {reason}"


def _unpack(path: Path, content: Any) -> Checkpoint:
    """Collects the tensors of a pickle's mappings; a mapping that holds all the others gives no prefix."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, but must hold a state dict")
    mappings = dict(_find_mappings(content, "", _MAX_DEPTH, set()))
    if not mappings:
        raise ValueError(f"{path} holds no tensors: {_describe_entries(content)}")
    outer = _common_start(list(mappings))
    if is_average(outer):  # keep the prefix that marks averaged weights
        outer = ""
    tensors = {
        f"{name.removeprefix(outer)}{key}": tensor
        for name, held in mappings.items()
        for key, tensor in held.items()
    }
    names = (clean_name(name.removeprefix(outer)) for name in mappings)
    return Checkpoint(tensors, mappings=tuple(name for name in names if name))


def _find_mappings(
    content: Mapping[Any, Any], name: str, depth: int, seen: set[int]
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yields (name, tensors) of every mapping that holds tensors itself, each once: one can hold itself."""
    if id(content) in seen:
        return
    seen.add(id(content))
    named = {key: value for key, value in content.items() if isinstance(key, str)}
    held = {key: value for key, value in named.items() if isinstance(value, Tensor)}
    if held:
        yield name, held
    for key, value in named.items():
        if depth and isinstance(value, Mapping):
            yield from _find_mappings(value, f"{name}{key}.", depth - 1, seen)


def _common_start(names: list[str]) -> str:
    """Returns the longest of the names, or of the mappings around them, that all of them start with."""
    first = names[0]
    ends = [match.end() for match in re.finditer(r"\.", first)]
    return next((first[:end] for end in reversed(ends) if all(x.startswith(first[:end]) for x in names)), "")


def _describe_entries(content: Mapping[Any, Any]) -> str:
    shown = [f"{str(key)[:40]} ({type(value).__name__})" for key, value in list(content.items())[:6]]
    more = f" and {len(content) - len(shown)} more" if len(content) > len(shown) else ""
    return f"its entries are {', '.join(shown)}{more}" if shown else "it is an empty mapping"
