"""A cache's folder: what it was begun with, which shards are finished, and the index that ends it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from latentae.files import has_keys, write_aside

SETTINGS, INDEX, SHARDS = "settings.json", "index.json", "latents_*.safetensors"
VERSION = 1

_KEYS = {"model", "normalisation", "data", "options"}  # of a cache's settings
_NEW = "choose a new or an empty folder"
_RESTART = "choose another folder, or remove this one and encode anew"


@dataclass(frozen=True)
class CacheSettings:
    """What latents of a cache depend on, written before the first shard.

    Attributes:
        model: ``hash`` (see ``model_hash``), ``class`` and the ``path`` it was opened by.
        normalisation: ``shift`` and ``scale``, a number a channel; None where they are not known.
        data: ``hash`` (see ``data_hash``), ``name``, the number of ``images`` and the ``caption_column``.
        options: those of ``CacheOptions``.
        version: of the files' layout.
    """

    model: dict[str, Any]
    normalisation: dict[str, list[float]] | None
    data: dict[str, Any]
    options: dict[str, Any]
    version: int = VERSION


@dataclass(frozen=True)
class ShardEntry:
    """A finished shard.

    Attributes:
        file: its name.
        bytes: its length.
        images: how many it holds.
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
        settings: what it was made of.
        shards: in the order of reading, those that hold images.
        posterior: whether there are standard deviations.
        label_names, num_classes: of the labels; None without names, without labels.
        captions: whether there are any.
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
        """Writes it, last of all."""
        write_aside(folder / INDEX, _to_json(self))


def read_index(folder: Path) -> CacheIndex:
    """The index of a finished cache.

    Raises:
        ValueError: there is no finished cache, or of a version that this program does not know.
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
    """Whether a cache of these settings may be made, or go on, in a folder; nothing is written.

    Raises:
        ValueError: it holds other files, or a cache of another model, of other data or of other options.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: choose a folder for the latents")
    if not (folder / SETTINGS).is_file():
        if folder.is_dir() and any(file for file in folder.iterdir() if not file.name.startswith(".")):
            raise ValueError(f"{folder} holds other files than latents: {_NEW}")
        return
    if not any(folder.glob(SHARDS)):
        if not has_keys(folder / SETTINGS, _KEYS):
            raise ValueError(f"{folder} holds other files than latents: {_NEW}")
        return  # of an attempt that failed before its first shard: there is nothing to lose
    there = _settings(_read_json(folder / SETTINGS), folder)
    if there.model["hash"] != settings.model["hash"]:
        raise ValueError(
            f"{folder} holds latents of another model, {there.model['path']}, or of this one before it "
            f"changed (hash {there.model['hash'][:12]}, now {settings.model['hash'][:12]}): {_RESTART}"
        )
    # Latents are stored unscaled: a scale that was not known may be given to those that are there.
    if there.normalisation not in (None, settings.normalisation):
        raise ValueError(f"{folder} holds latents of this model at another scale or shift: {_RESTART}")
    if there.data["hash"] != settings.data["hash"]:
        raise ValueError(
            f"{folder} holds latents of other images: {there.data['images']} of {there.data['name']}; now "
            f"there are {settings.data['images']}, or their names, pixels or labels have changed: {_RESTART}"
        )
    columns = [data.data.get("caption_column") for data in (there, settings)]
    if columns[0] != columns[1]:  # the shards that are there would keep their captions, or have none
        raise ValueError(
            f"{folder} holds latents made with caption_column={columns[0]!r} (now {columns[1]!r}): give the "
            f"same, or {_RESTART}"
        )
    changed = [name for name in settings.options if settings.options[name] != there.options.get(name)]
    if changed:
        differences = ", ".join(
            f"{name}={there.options.get(name)!r} (now {settings.options[name]!r})" for name in changed
        )
        raise ValueError(
            f"{folder} holds latents made with {differences}: give the same options, or {_RESTART}"
        )


def recorded_options(folder: Path) -> dict[str, Any]:
    """The options that a cache in this folder was begun with; empty where there is none."""
    if not (folder / SETTINGS).is_file() or not any(folder.glob(SHARDS)):
        return {}
    return _settings(_read_json(folder / SETTINGS), folder).options


def write_settings(folder: Path, settings: CacheSettings) -> None:
    """Writes them, first of all."""
    write_aside(folder / SETTINGS, _to_json(settings))


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


def _to_json(content: CacheSettings | CacheIndex) -> bytes:
    return (json.dumps(asdict(content), indent=1) + "\n").encode()
