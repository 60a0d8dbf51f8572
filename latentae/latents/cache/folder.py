"""The files of a cache: its settings, written first; its shards; and its index, written last."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from latentae.data import BrokenImageError, ImageSource
from latentae.data.annotations import Annotations
from latentae.data.source import spread_evenly
from latentae.files import has_keys, write_aside
from latentae.models import Flux2VAE, LatentAutoencoder, load_autoencoder
from latentae.models.flux2 import PATCH
from latentae.weights import hash_tensors

SETTINGS, INDEX, SHARDS = "settings.json", "index.json", "latents_*.safetensors"
VERSION = 1

FLIPPED = "_flipped"
"""The suffix of the names of tensors of mirrored images."""

_KEYS = {"model", "normalisation", "data", "options"}  # in a cache's settings
_NEW = "choose a new or an empty folder"
_RESTART = "choose another folder, or remove this one and encode anew"
_REMEDY = "remove the file, and the command that encoded the latents makes this shard anew"


@dataclass(frozen=True)
class CacheSettings:
    """Everything that the latents of a cache depend on; written before the first shard.

    Attributes:
        model: ``hash`` (see ``model_hash``), ``class`` and the ``path`` it was opened by.
        normalisation: ``shift`` and ``scale``, a number per channel, and ``patch`` for a FLUX.2 VAE; None
            where they are not known.
        data: ``hash`` (see ``data_hash``), ``name``, the number of ``images`` and the ``caption_column``.
        options: what ``CacheOptions.recorded`` returns.
        version: of the files' layout.
    """

    model: dict[str, Any]
    normalisation: dict[str, list[float]] | None
    data: dict[str, Any]
    options: dict[str, Any]
    version: int = VERSION

    def write(self, folder: Path) -> None:
        """Writes the settings, which must be the first file that is written."""
        _write_json(folder / SETTINGS, self)


@dataclass(frozen=True)
class ShardEntry:
    """A finished shard: the name of its file, its length in bytes, and the number of its images.

    Attributes:
        shape: [c, h, w] of each image's latents, or of its codes where there are no latents.
        size: [height, width] in pixels that the images were encoded at.
    """

    file: str
    bytes: int
    images: int
    shape: list[int]
    size: list[int]


@dataclass(frozen=True)
class CacheIndex:
    """A finished cache.

    Attributes:
        settings: as they were written first.
        shards: that hold images, in the order of reading.
        posterior: whether the shards hold standard deviations.
        label_names: names of the classes; None without labels or names.
        num_classes: number of classes; None without labels.
        captions: whether the shards hold captions.
        skipped: ``name: reason`` of images that could not be decoded.
    """

    settings: CacheSettings
    shards: list[ShardEntry]
    posterior: bool
    label_names: list[str] | None = None
    num_classes: int | None = None
    captions: bool = False
    skipped: list[str] = field(default_factory=list)

    @property
    def images(self) -> int:
        return sum(shard.images for shard in self.shards)

    def write(self, folder: Path) -> None:
        """Writes the index, which must be the last file that is written."""
        _write_json(folder / INDEX, self)


def read_index(folder: Path) -> CacheIndex:
    """Returns the index of a finished cache.

    Raises:
        ValueError: there is no finished cache, or its version is not supported.
    """
    if not (folder / INDEX).is_file():
        if has_keys(folder / SETTINGS, _KEYS):
            raise ValueError(
                f"the latents in {folder} are not finished: run the command that encodes them again, and it "
                "goes on where it stopped"
            )
        raise ValueError(f"there are no latents in {folder}: make them with `latentae encode`")
    content = _read_json(folder / INDEX)
    if not isinstance(content, dict) or not {"settings", "shards"} <= content.keys():
        raise ValueError(f"{folder / INDEX} is not of latents: make them with `latentae encode`")
    settings = _settings(content.pop("settings"), folder)
    shards = [ShardEntry(**shard) for shard in content.pop("shards")]
    return CacheIndex(settings=settings, shards=shards, **content)


def check_folder(folder: Path, settings: CacheSettings) -> None:
    """Checks that a cache of these settings may be begun or continued in a folder; nothing is written.

    Raises:
        ValueError: the folder holds other files, or a cache of another model, other data or other options.
    """
    # A folder without a cache must be empty.
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: choose a folder for the latents")
    if not (folder / SETTINGS).is_file():
        if folder.is_dir() and any(file for file in folder.iterdir() if not file.name.startswith(".")):
            raise ValueError(f"{folder} holds other files than latents: {_NEW}")
        return
    if not any(folder.glob(SHARDS)):
        if not has_keys(folder / SETTINGS, _KEYS):
            raise ValueError(f"{folder} holds other files than latents: {_NEW}")
        return  # an attempt failed before its first shard: there is nothing to lose

    # A cache that was begun must depend on the same model, data and options.
    there = _settings(_read_json(folder / SETTINGS), folder)
    if there.model["hash"] != settings.model["hash"]:
        raise ValueError(
            f"{folder} holds latents of another model, {there.model['path']}, or of this one before it "
            f"changed (hash {there.model['hash'][:12]}, now {settings.model['hash'][:12]}): {_RESTART}"
        )
    # Latents are stored unscaled: a scale that was not known before may be added.
    if there.normalisation not in (None, settings.normalisation):
        raise ValueError(f"{folder} holds latents of this model at another scale or shift: {_RESTART}")
    if there.data["hash"] != settings.data["hash"]:
        raise ValueError(
            f"{folder} holds latents of other images: {there.data['images']} of {there.data['name']}; now "
            f"there are {settings.data['images']}, or their names, pixels or labels have changed: {_RESTART}"
        )
    columns = [data.data.get("caption_column") for data in (there, settings)]
    if columns[0] != columns[1]:  # finished shards would keep their captions, or their lack of captions
        raise ValueError(
            f"{folder} holds latents made with caption_column={columns[0]!r} (now {columns[1]!r}): give the "
            f"same, or {_RESTART}"
        )
    pairs = {
        name: (there.options.get(name), settings.options.get(name))
        for name in {**settings.options, **there.options}
    }
    changed = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    if changed:
        differences = ", ".join(f"{name}={was!r} (now {now!r})" for name, (was, now) in changed.items())
        raise ValueError(
            f"{folder} holds latents made with {differences}: give the same options, or {_RESTART}"
        )


def recorded_options(folder: Path) -> dict[str, Any]:
    """Returns the options that the cache in a folder was begun with; empty where there is no shard."""
    if not (folder / SETTINGS).is_file() or not any(folder.glob(SHARDS)):
        return {}
    return _settings(_read_json(folder / SETTINGS), folder).options


def _settings(content: dict[str, Any], folder: Path) -> CacheSettings:
    if content.get("version") != VERSION:
        raise ValueError(
            f"{folder} is a cache of version {content.get('version')}, and this program reads {VERSION}: "
            f"{_RESTART}"
        )
    return CacheSettings(**content)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): {_RESTART}") from error
    return content


def _write_json(path: Path, content: CacheSettings | CacheIndex) -> None:
    write_aside(path, (json.dumps(asdict(content), indent=1) + "\n").encode())


def write_shard(
    path: Path, tensors: dict[str, Tensor], *, texts: dict[str, list[str]], skipped: list[str]
) -> None:
    """Writes a shard, whole or not at all: one safetensors file.

    Args:
        tensors: [n, ...] each, on the CPU.
        texts: n texts by name, such as the images' names and captions.
        skipped: ``name: reason`` of images that are not in the shard.
    """
    packed = {key: value for name, rows in texts.items() for key, value in _pack(name, rows).items()}
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_aside(path, save({**contiguous, **packed}, {"skipped": json.dumps(skipped)}))


def is_whole(path: Path) -> bool:
    """Returns whether a shard is there and not cut short."""
    try:
        with safe_open(path, framework="pt"):
            return True
    except (OSError, SafetensorError):
        return False


def describe_shard(path: Path, size: tuple[int, int]) -> tuple[ShardEntry, list[str]]:
    """Returns a finished shard's entry in the index, and ``name: reason`` of images that it lacks."""
    with safe_open(path, framework="pt") as file:
        names = file.keys()
        images = len(file.get_tensor("indices"))
        first = next((name for name in ("mean", "codes") if name in names), None)
        shape = [] if first is None else list(file.get_slice(first).get_shape()[1:])
        skipped = json.loads(file.metadata()["skipped"])
    return ShardEntry(path.name, path.stat().st_size, images, shape, list(size)), skipped


class ShardReader:
    """Reads rows of a shard, which is mapped into memory; raises ValueError as ``check_shard`` does.

    Args:
        entry: of the shard in the index.
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
        """Returns row ``position`` of a tensor."""
        if name not in self._slices:
            self._slices[name] = self._file.get_slice(name)
        return cast(Tensor, self._slices[name][position])

    def text(self, name: str, position: int) -> str:
        """Returns text ``position`` of the texts ``name``."""
        if name not in self._texts:
            ends = self._file.get_tensor(f"{name}_ends").tolist()
            self._texts[name] = (self._file.get_tensor(name), [0, *ends])
        characters, bounds = self._texts[name]
        part = characters[bounds[position] : bounds[position + 1]]
        return part.numpy().tobytes().decode(errors="surrogateescape")

    def whole(self, name: str) -> Tensor:
        """Returns a whole tensor [n, ...]."""
        return cast(Tensor, self._file.get_tensor(name))


def check_shard(path: Path, entry: ShardEntry) -> None:
    """Raises ValueError, with a remedy, unless a shard is there and has the length in its entry."""
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


# Settings that change an encoder's output and do not show in its weights.
_ENCODER_SETTINGS = ("norm_num_groups", "act_fn", "down_block_types", "mid_block_add_attention", "backbone")
_DECODER = ("decoder.", "post_quant_conv.", "bn.")  # and the statistics of FLUX.2's latents
_IMAGES_LOOKED_AT = 32


def model_hash(model: LatentAutoencoder, *, codes: bool = False) -> str:
    """Returns a SHA-256, in hexadecimal digits, of everything in a model that its latents depend on.

    The decoder is left out, so that a model whose decoder was fine-tuned reads the latents of the model that
    it came from. Scale and shift are left out, since they are compared on their own.

    Args:
        codes: whether the codebook is included.
    """
    settings = {name: model.config.get(name) for name in _ENCODER_SETTINGS}
    if codes:
        settings["quantizer"] = model.config.get("quantizer")
    left_out = _DECODER if codes else (*_DECODER, "quantize.")
    encoder = {name: value for name, value in model.state_dict().items() if not name.startswith(left_out)}
    return hash_tensors(encoder, json.dumps(settings, sort_keys=True, default=list))


def normalisation_of(model: LatentAutoencoder) -> dict[str, list[float]] | None:
    """Returns ``shift`` and ``scale`` of ``to_latents``, a number per channel; None: they are not known.

    A FLUX.2 VAE also has ``patch``, the sides of the patches that become channels first; the numbers are then
    of the patches' channels.
    """
    try:
        shift, scale = model._normalisation(torch.zeros(1, model.latents_channels, 1, 1, dtype=torch.float64))
    except ValueError:
        return None
    patch: dict[str, list[float]] = (
        {"patch": [float(PATCH), float(PATCH)]} if isinstance(model, Flux2VAE) else {}
    )
    channels = model.latents_channels * (PATCH**2 if patch else 1)
    whole = torch.zeros(channels, 1, 1, dtype=torch.float64)
    parts = (("shift", shift), ("scale", scale))
    return {name: (whole + part).flatten().tolist() for name, part in parts} | patch


def data_hash(source: ImageSource, annotations: Annotations, channels: int) -> str:
    """Returns a SHA-256 of the names of all images in order, their labels, and the pixels of 32 images."""
    digest = hashlib.sha256()
    for index in range(len(source)):
        digest.update(source.name(index).encode(errors="surrogateescape") + b"\0")
    if annotations.labels is not None:
        digest.update(annotations.labels.tobytes())
    digest.update(json.dumps(annotations.label_names).encode())
    for index in spread_evenly(_IMAGES_LOOKED_AT, len(source)):
        try:
            pixels: Any = source.load(index, channels)
        except BrokenImageError:
            digest.update(b"broken")
        else:
            digest.update(f"{pixels.shape} {pixels.dtype}".encode() + pixels.tobytes())
    return digest.hexdigest()


def check_model(settings: CacheSettings, model: str | Path | LatentAutoencoder, folder: Path) -> None:
    """Raises ValueError unless the latents in ``folder``, made with ``settings``, are of this model.

    The decoder may differ.
    """
    opened = load_autoencoder(model) if isinstance(model, str | Path) else model
    if not isinstance(opened, LatentAutoencoder):
        raise ValueError(f"model is a {type(opened).__name__}: give a path, or what load_autoencoder returns")
    found, wanted = model_hash(opened, codes=settings.options["codes"]), settings.model["hash"]
    if found != wanted:
        raise ValueError(
            f"the latents in {folder} are of another model: of {settings.model['path']} "
            f"({settings.model['class']}, hash {wanted[:12]}), and this {type(opened).__name__} has the hash "
            f"{found[:12]}: encode the images with this model into another folder, or give the model that "
            "they are of, in the dtype that it had then"
        )
    if normalisation_of(opened) != settings.normalisation:
        raise ValueError(
            f"the latents in {folder} are of this model at another scale or shift, which it had when they "
            "were encoded: encode anew into another folder, or give the model as it was"
        )
