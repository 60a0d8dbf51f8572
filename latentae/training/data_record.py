"""What images a run has read, as its folder remembers them: data that moved are still the same."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from latentae.config import ConfigError
from latentae.data import (
    BrokenImageError,
    CachedSource,
    ImageDataset,
    ImageSource,
    ImageStream,
    sample_dataset,
)

_SAMPLES = 16
_MOST_NAMES = 1 << 17  # spread evenly; all names of a hundred million images would take minutes
_SIDE = 32  # decoders may give a version this small, which is quicker
_CELLS = 4  # along each side of an image, of whose values the means are kept
_TOLERANCE = 0.02  # of these means in [0, 1]: decoders differ by less from release to release


def record_data(training: ImageDataset | ImageStream, validation: ImageDataset) -> dict[str, Any]:
    """The number, names and order of the images, and what a few look like, as plain JSON values.

    Of a stream it is the number of shards, and a few images from the beginnings of some.
    """
    if isinstance(training, ImageStream):
        record = _describe(sample_dataset(training, _SAMPLES).source, training.channels)
        record["shards"] = len(training.shards)
    else:
        record = _describe(training.source, training.channels)
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
    """How two records differ, in a clause; None: they are of the same images."""
    for part in ("training", "validation"):
        old, new = before[part], now[part]
        for what in ("shards", "images"):
            if old.get(what) != new.get(what):
                return f"{part} had {old.get(what)} {what}, and has {new.get(what)} now"
        if old["names"] != new["names"]:
            return f"the {part} images have other names, or another order"
        for (name, *numbers), (_, *others) in zip(old["samples"], new["samples"], strict=True):
            # Of one that could not be decoded nothing is known.
            pairs = zip(numbers, others, strict=False)
            if not all(math.isclose(a, b, abs_tol=_TOLERANCE) for a, b in pairs):
                return f"the {part} image {name} is another one"
    return None


def _describe(source: ImageSource, channels: int) -> dict[str, Any]:
    if isinstance(source, CachedSource):  # whose memory is for what training asks for
        source = source.source
    names = hashlib.sha256()
    for index in range(0, len(source), 1 + len(source) // _MOST_NAMES):
        names.update(os.fsencode(source.name(index)) + b"\0")
    count = min(_SAMPLES, len(source))
    samples = [_sample(source, position * len(source) // count, channels) for position in range(count)]
    return {"images": len(source), "names": names.hexdigest(), "samples": samples}


def _sample(source: ImageSource, index: int, channels: int) -> list[Any]:
    """Name, height, width and 4x4 means of an image; the name alone where it cannot be decoded."""
    name = os.fsencode(source.name(index)).decode("utf-8", "backslashreplace")
    try:
        pixels = source.load(index, channels, _SIDE)
    except BrokenImageError:
        return [name]
    full = 255 if pixels.dtype.kind == "u" else 1
    rows = [row for row in np.array_split(pixels, _CELLS) if row.size]
    cells = [cell for row in rows for cell in np.array_split(row, _CELLS, axis=1) if cell.size]
    return [name, *pixels.shape[:2], *(round(float(cell.mean()) / full, 3) for cell in cells)]
