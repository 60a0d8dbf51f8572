"""The images of a run: opened and checked, those that cannot be read, and a record that recognises them."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentae import build, distributed
from latentae.config import ConfigError, DataConfig, RunConfig
from latentae.data import (
    BrokenImageError,
    CachedSource,
    HeldOut,
    ImageDataset,
    ImageSource,
    ImageStream,
    check_images,
    describe_size,
    sample_dataset,
    whole_images,
)
from latentae.data.source import spread_evenly
from latentae.data.transforms import to_tensor
from latentae.evaluation.reconstruct import shrink
from latentae.latents.cache import ImagesWithLatents
from latentae.training.run_folder import RunFolder

_PREVIEW_IMAGES = 8
_WHOLE_IMAGES, _WHOLE_SIDE = 2, 512
_NAMES_SHOWN = 5
_LEAST_CHECKED = 16  # images that are opened to find transparency
# For the record of the data:
_SAMPLES = 16
_MOST_NAMES = 1 << 17  # evenly spaced; all names of a hundred million images would take minutes
_SIDE = 32  # decoders may return a version this small, which is faster
_CELLS = 4  # means are taken over a grid of 4x4 cells
_TOLERANCE = 0.02  # of these means in [0, 1]: decoders differ by less from release to release


class TooManyBrokenImagesError(ValueError):
    """More images cannot be read than ``data.max_broken`` allows."""


class BrokenImages:
    """The distinct broken images met so far.

    Args:
        limit: how many are allowed.
        gather: joins the lists of all ranks into one, the same on each.
    """

    def __init__(self, limit: int, gather: Callable[[list[str]], list[str]]) -> None:
        self.limit = limit
        self.gather = gather
        self.known: set[str] = set()
        self.fresh: set[str] = set()

    def add(self, descriptions: Iterable[str]) -> None:
        """Notes descriptions (name and reason) of broken images; empty ones are ignored."""
        self.fresh.update(text for text in descriptions if text and text not in self.known)

    def report(self) -> str | None:
        """Returns a sentence on what was added since the last call, or None; every rank must call it.

        Raises:
            TooManyBrokenImagesError: in total there are more than the limit.
        """
        fresh = sorted(set(self.gather(sorted(self.fresh))) - self.known)
        self.known.update(fresh)
        self.fresh.clear()
        if not fresh:
            return None
        shown = "".join(f"\n  {text}" for text in fresh[:_NAMES_SHOWN])
        if len(fresh) > _NAMES_SHOWN:
            shown += f"\n  and {len(fresh) - _NAMES_SHOWN} more"
        if len(self.known) > self.limit:
            raise TooManyBrokenImagesError(
                f"{len(self.known)} image{'s' * (len(self.known) > 1)} cannot be read, and "
                f"data.max_broken is {self.limit}:{shown}\n"
                "repair or remove them, or raise data.max_broken"
            )
        if len(fresh) == 1:
            return f"an image cannot be read and is skipped:{shown}"
        return f"{len(fresh)} images cannot be read and are skipped:{shown}"


@dataclass
class RunImages:
    """The images that a run trains on, measures on and shows.

    Attributes:
        training, validation: datasets, or a stream to train on; no image is in both.
        preview: [B, C, H, W] in [−1, 1], some validation images, evenly spaced.
        broken: the images that could not be read so far.
        places: lines that say which splits they are, where they are and what was left out.
        held_out: keeps validation images out of training when images are added.
        unreadable: how many of the training images that were opened at the start could not be read.
    """

    training: ImageDataset | ImageStream
    validation: ImageDataset
    preview: Tensor
    broken: BrokenImages
    unreadable: int = 0
    places: str = ""
    held_out: HeldOut = field(default_factory=HeldOut)

    def describe(self) -> str:
        """Returns how many there are, for people."""
        training = f"{describe_size(self.training)} training images"
        if self.unreadable:
            training += f" ({self.unreadable} or more unreadable)"
        return f"{training}, {len(self.validation)} validation images"


def open_images(
    config: RunConfig,
    *,
    gather: Callable[[list[str]], list[str]],
    say: Callable[[str], None],
    notes: Path | None = None,
    before: HeldOut | None = None,
) -> RunImages:
    """Opens the data and looks for broken images; every rank must call it.

    Args:
        gather: joins the lists of all ranks into one, the same on each.
        say: is told of broken images.
        notes: the folder where streams note how many images their shards hold; None: they do not.
        before: what a run that is continued has held out; None: a fresh run.

    Raises:
        ValueError: no such data, too many broken images, or with ``data.alpha`` none with transparency.
    """
    data, channels = config.data, config.model.in_channels
    with distributed.main_first():  # the first rank downloads and indexes, the others find it done
        sources = build.build_sources(data, notes, before)
    training, validation = build.build_datasets(sources, data, channels, config.seed)
    places = sources.description
    if data.latents is not None:
        assert isinstance(training, ImageDataset)  # the config refuses a stream
        training = _with_latents(training, data)
        places += f"\n{training.describe()}"
    # Look for broken images. To look through a stream would be to read all of it.
    broken = BrokenImages(data.max_broken, gather)
    unreadable = _find_broken(validation, data.check_images)
    unreadable_training = (
        _find_broken(training, data.check_images) if isinstance(training, ImageDataset) else []
    )
    broken.add([*unreadable, *unreadable_training])
    sentence = broken.report()
    if sentence is not None:
        say(sentence)
    if isinstance(training, ImageDataset) and isinstance(training.source, CachedSource):
        remark = training.source.describe_cache()
        if remark:
            share = "three quarters" if distributed.local_world_size() == 1 else "this process's share"
            say(f"{remark} ({share} of data.cache_megabytes={data.cache_megabytes})")
    if data.alpha:
        _check_transparency(config, training, validation)
    spread = spread_evenly(_PREVIEW_IMAGES, len(validation))
    preview = torch.stack([validation[0, i]["images"] for i in spread])
    count_unreadable = int(distributed.all_reduce_sum(torch.tensor(len(unreadable_training))))
    return RunImages(training, validation, preview, broken, count_unreadable, places, sources.record)


def load_whole_images(validation: ImageDataset, *, alpha: bool = False) -> list[Tensor]:
    """Loads two of the validation images as a whole, or one if there is only one; broken ones are left out.

    Args:
        validation: the images.
        alpha: whether they are RGBA.

    Returns:
        tensors [C, H, W] in [−1, 1]. The longer side has at most 512 pixels; larger images are resized.
    """
    source = whole_images(validation.source)
    images = []
    for index in spread_evenly(_WHOLE_IMAGES, len(source)):
        try:
            pixels = source.load(index, validation.channels)
        except BrokenImageError:
            continue
        images.append(to_tensor(shrink(pixels, _WHOLE_SIDE, alpha=alpha)))
    return images


def _with_latents(training: ImageDataset, data: DataConfig) -> ImagesWithLatents:
    """Returns the training images with their cached latents.

    Raises:
        ConfigError: the folder does not hold latents of these images and crops.
    """
    assert data.latents is not None
    try:
        return ImagesWithLatents(
            training.source,
            data.latents,
            data.height_and_width,
            training.channels,
            training.seed,
            flip=data.random_flip,
            alpha=data.alpha,
        )
    except ValueError as error:
        raise ConfigError(f"`data.latents` is {data.latents}, which cannot be used: {error}") from error


def _find_broken(dataset: ImageDataset, limit: int) -> list[str]:
    """Tries to decode up to ``limit`` of this rank's images and others; returns why some cannot be.

    They are decoded at the size that the dataset asks for, so a cache of decoded images keeps them.
    """
    return check_images(dataset.source, dataset.channels, limit, dataset.minimum_side)


def _check_transparency(
    config: RunConfig, training: ImageDataset | ImageStream, validation: ImageDataset
) -> None:
    """Raises ConfigError if ``data.alpha`` is set, but no image that is opened has transparency."""
    opened = 0
    for dataset in (validation, training):
        if isinstance(dataset, ImageStream):
            continue
        count = max(config.data.check_images, _LEAST_CHECKED)
        for index in spread_evenly(count, len(dataset.source)):
            try:
                alpha = dataset.source.load(index, dataset.channels, dataset.minimum_side)[..., 3]
            except BrokenImageError:
                continue
            if alpha.min() < (255 if alpha.dtype.kind == "u" else 1):
                return
            opened += 1
    raise ConfigError(
        f"`data.alpha` is true, but none of {opened} images of {config.data.name} that were opened has "
        "transparency: files without it count as opaque, so alpha cannot be learned; use RGBA images, or "
        "data.alpha=false with model.in_channels=3"
    )


def held_out_before(folder: RunFolder, resume: str) -> HeldOut | None:
    """Returns what the run that is continued, or branched off, has held out; None for a fresh start.

    Raises:
        ConfigError: the record cannot be read.
    """
    checkpoint = folder.checkpoint_to_resume(resume)
    if checkpoint is None:
        return None
    file = RunFolder(checkpoint.parent.parent).held_out
    if not file.exists():  # a run of a version that kept no record
        return HeldOut(by_name=True)
    try:
        return HeldOut.from_dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{file}, which says what the run has kept out of training, cannot be read ({error}); restore "
            "it, or start again in a new output_dir"
        ) from error


# The record of a run's data: data that moved are recognised as the same


def compare_data(
    images: RunImages, folder: RunFolder, config: RunConfig, *, continued: bool, say: Callable[[str], object]
) -> dict[str, Any]:
    """Returns a record of the run's images, on the first rank. Every rank calls it.

    Args:
        continued: whether the run continues, so that its images must be those of ``folder.data``.
        say: is told if they differ although the settings name the same data.

    Raises:
        ConfigError: on all ranks, if a run is continued with settings that name other images.
    """
    record: dict[str, Any] = {}
    difference, refusal = None, None
    if distributed.is_main():
        record = record_data(images.training, images.validation)
        if continued and folder.data.is_file():
            try:
                difference = data_difference(read_record(folder.data), record)
                refusal = difference and folder.other_data(config, difference)
            except ValueError as error:  # the other ranks wait for an answer
                refusal = str(error)
    if distributed.broadcast_from_main(torch.tensor(int(refusal is not None))):
        raise ConfigError(refusal or "the run reads other data than before")
    if difference is not None:
        say(
            f"the data differ from those that this run began with: {difference}; from here on the images "
            "come in another order"
        )
    return record


def record_data(training: ImageDataset | ImageStream, validation: ImageDataset) -> dict[str, Any]:
    """Returns the number, names and order of the images, and what a few look like, as plain JSON values.

    Of a stream it records the number of shards, and a few images from the beginnings of some.
    """
    if isinstance(training, ImageStream):
        record = _describe(sample_dataset(training, _SAMPLES).source, training.channels)
        record["shards"] = len(training.shards)
    else:
        record = _describe(training.source, training.channels)
    if isinstance(training, ImagesWithLatents):
        record["latents"] = training.identity
    return {"training": record, "validation": _describe(validation.source, validation.channels)}


def read_record(file: Path) -> dict[str, Any]:
    """Reads a record that ``record_data`` made.

    Raises:
        ConfigError: the file does not hold one.
    """
    try:
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        for part in ("training", "validation"):
            record[part]["images"], record[part]["names"], record[part]["samples"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(
            f"{file}, which says what data the run has read, cannot be read ({error}); restore it, or remove "
            "it and continue with data.name as it was"
        ) from error
    return record


def data_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Returns how two records differ, in a clause; None: they are of the same images."""
    for part in ("training", "validation"):
        old, new = before[part], now[part]
        for what in ("shards", "images"):
            if old.get(what) != new.get(what):
                return f"{part} had {old.get(what)} {what}, and has {new.get(what)} now"
        if old.get("latents") != new.get("latents"):
            return "the latents are others"
        if old["names"] != new["names"]:
            return f"the {part} images have other names, or another order"
        for (name, *numbers), (_, *others) in zip(old["samples"], new["samples"], strict=True):
            # Nothing is known of an image that could not be decoded.
            pairs = zip(numbers, others, strict=False)
            if not all(math.isclose(a, b, abs_tol=_TOLERANCE) for a, b in pairs):
                return f"the {part} image {name} is another one"
    return None


def _describe(source: ImageSource, channels: int) -> dict[str, Any]:
    if isinstance(source, CachedSource):  # the cache is for what training asks for
        source = source.source
    names = hashlib.sha256()
    for index in range(0, len(source), 1 + len(source) // _MOST_NAMES):
        names.update(os.fsencode(source.name(index)) + b"\0")
    samples = [_sample(source, index, channels) for index in spread_evenly(_SAMPLES, len(source))]
    return {"images": len(source), "names": names.hexdigest(), "samples": samples}


def _sample(source: ImageSource, index: int, channels: int) -> list[Any]:
    """Returns name, height, width and 4x4 means of an image; the name alone if it cannot be decoded."""
    name = os.fsencode(source.name(index)).decode("utf-8", "backslashreplace")
    try:
        pixels = source.load(index, channels, _SIDE)
    except BrokenImageError:
        return [name]
    full = 255 if pixels.dtype.kind == "u" else 1
    rows = [row for row in np.array_split(pixels, _CELLS) if row.size]
    cells = [cell for row in rows for cell in np.array_split(row, _CELLS, axis=1) if cell.size]
    return [name, *pixels.shape[:2], *(round(float(cell.mean()) / full, 3) for cell in cells)]
