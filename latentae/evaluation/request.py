"""What is asked of an evaluation, and whether it can be done."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from latentae.evaluation.models import PRECISIONS, name_models
from latentae.evaluation.protocol import protocol_called
from latentae.evaluation.settings import Settings

RESULTS = "results.json"
"""What marks a folder as that of a finished report."""

WORK = ".measured"
"""What is measured so far, inside of the report's folder while it is not finished."""


@dataclass(frozen=True)
class Request:
    """What to evaluate, on what, and where to write it.

    Attributes:
        models: what ``load_autoencoder`` opens, each perhaps with a name before it: ``name=path``.
        data: the name of the data: ``photos``, a path, or a dataset of the hub.
        out: folder of the report.
        split: of the data; None takes the validation split, else the test split, else all there is.
        image_column, dataset_config, value_range, max_pixels: how to read the data, as ``open_source`` takes
            them.
        protocol: its name.
        limit: images at most, spread evenly; None measures all.
        precision: of the models' forward passes; metrics stay as they are.
        inception: file of Inception's weights; None looks for them.
        features: whether distances between feature distributions are measured.
        overwrite: whether a report that is there is replaced.
        settings: how it runs.
    """

    models: Sequence[str]
    data: str
    out: Path
    split: str | None = None
    image_column: str | None = None
    dataset_config: str | None = None
    value_range: tuple[float, float] | None = None
    max_pixels: int | None = None
    protocol: str = "imagenet-256"
    limit: int | None = None
    precision: str = "float32"
    inception: Path | None = None
    features: bool = True
    overwrite: bool = False
    settings: Settings = field(default_factory=Settings)

    def check(self) -> None:
        """What can be known without opening models or data; nothing is written.

        Raises:
            ValueError: one of them cannot be, or a report is there already.
        """
        name_models(self.models)
        protocol_called(self.protocol)
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is {self.precision!r}, but must be one of {', '.join(PRECISIONS)}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit is {self.limit}, but at least one image must be measured")
        if self.inception is not None and not self.inception.is_file():
            raise ValueError(f"inception is {self.inception}, but there is no such file")
        check_folder(self.out, self.overwrite)


def check_folder(out: Path, overwrite: bool) -> None:
    """Whether a report may be written to ``out``: a folder that is new, empty, or a report's.

    Raises:
        ValueError: it may not.
    """
    if (out / RESULTS).exists():
        if not overwrite:
            raise ValueError(
                f"{out} holds a report already: choose another --out, or replace it by --overwrite"
            )
    elif out.is_dir() and any(out.iterdir()) and not (out / WORK).is_dir():
        raise ValueError(f"{out} holds other files than a report: choose a new or an empty folder for --out")
    place = out
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise ValueError(f"{out} cannot be a folder: {place} is a file")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(f"{out} cannot be written: there is no permission to write in {place}")
