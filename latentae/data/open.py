"""Opens data by name: a map-style source, the sources of a training run, or the streams of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from latentae.data.arrays import ValueRange, check_value_range
from latentae.data.folder import open_images
from latentae.data.holdout import HeldOut, choose_held_out, hold_out, read_held_out
from latentae.data.locate import Located, locate, match_split, validation_split
from latentae.data.names import printable
from latentae.data.photos import training_photos, validation_photos
from latentae.data.source import ImageSource, describe_source
from latentae.data.stream import Shards, read_first
from latentae.data.table import TableShards, TableSource
from latentae.data.table_files import (
    open_table_files,
    prepare_hub_dataset,
    stream_hub_dataset,
    stream_table_files,
)
from latentae.data.tar import TarShards, TarSource

_IN_MEMORY = 2000


@dataclass(frozen=True)
class DataSelection:
    """Names one split of some data and says how to read it; ``open`` returns the images.

    Attributes:
        name: `photos` or `builtin:photos` (built in: see latentae.data.photos); or the path of a folder of
            images, of a parquet, arrow or tar file, of a folder of such files, or of what `datasets` saved to
            disk; or a pattern of such files or of image files (see ``expand_pattern``); or the id of a
            dataset on the Hugging Face hub, which may begin with `hf://datasets/`. In one folder, tar files
            take precedence over tables, tables over arrays (.npy), and pictures over all of these, unless
            tar files or tables hold more images: then the name must say which are meant.
        split: a folder has the splits that the names of its subfolders, tables or tar files state by a word
            (train, training or trainval; val, valid, validation, dev or holdout; test, testing, eval or
            evaluation), and otherwise the one split `train`, like a file or a pattern: see ``divide_folder``
            and ``split_files``. For the hub, any split expression of `datasets`, such as `train[:10%]`.
        image_column: for tables, the column with the images; None: found by its type or name. For tar files,
            the extension of the images: see ``choose_images``.
        dataset_config: for the hub, the configuration of a dataset that has several.
        value_range: for images of more than 8 bits, the numbers that are black and white: see
            ``to_fractions``.
        max_pixels: pixels of the largest picture that is decoded; larger ones count as broken. None:
            ``MAX_PIXELS``.
    """

    name: str
    split: str = "train"
    image_column: str | None = None
    dataset_config: str | None = None
    value_range: ValueRange | None = None
    max_pixels: int | None = None

    def open(self) -> ImageSource:
        """Opens the images.

        Raises:
            ValueError: there are no such data, no such split or column, or no image in them.
        """
        splits = _find_splits(self)
        return splits.open(match_split(self.name, self.split, splits.names))


@dataclass(frozen=True)
class Sources:
    """The images of a training run; no image is in both parts.

    Attributes:
        train, validation: the images.
        description: says which splits they are, where they lie and what was left out.
        record: which images stay held out when more are added.
    """

    train: ImageSource
    validation: ImageSource
    description: str = ""
    record: HeldOut = field(default_factory=HeldOut)


@dataclass(frozen=True)
class StreamSources:
    """The images of a training run that streams; no image is in both parts.

    Attributes:
        train: the shards.
        held_out: shard -> how many of its first images belong to `validation`, and not to training.
        validation: the images to measure on.
        description: says which splits they are, where they lie and what was left out.
        record: which images stay held out when more shards are added.
    """

    train: Shards
    held_out: dict[int, int]
    validation: ImageSource
    description: str = ""
    record: HeldOut = field(default_factory=HeldOut)


def open_source(
    name: str,
    *,
    split: str = "train",
    image_column: str | None = None,
    dataset_config: str | None = None,
    value_range: ValueRange | None = None,
    max_pixels: int | None = None,
) -> ImageSource:
    """Opens the images of one split of the data called ``name``: see ``DataSelection``.

    Raises:
        ValueError: there are no such data, no such split or column, or no image in them.
    """
    return DataSelection(name, split, image_column, dataset_config, value_range, max_pixels).open()


def open_sources(
    name: str,
    *,
    split: str = "train",
    image_column: str | None = None,
    dataset_config: str | None = None,
    holdout: float = 0.05,
    value_range: ValueRange | None = None,
    max_pixels: int | None = None,
    before: HeldOut | None = None,
) -> Sources:
    """Opens the images to train with (``split``), and those to validate with.

    Validation takes the split `validation` (or `val`, `valid`), else `test`, else about the share ``holdout``
    of the training images, which are then not trained with: see ``hold_out``. ``before`` is the ``record`` of
    the sources that the run had before. For the other arguments and the errors see ``DataSelection``.
    """
    selection = DataSelection(name, split, image_column, dataset_config, value_range, max_pixels)
    splits = _find_splits(selection)
    training_split = match_split(name, split, splits.names)
    train = splits.open(training_split)
    trained_on = describe_source(train)
    measured = validation_split(splits.names, training_split)
    if measured is not None:
        validation = splits.open(measured)
        measured_on = describe_source(validation)
        description = _describe_splits(training_split, trained_on, measured, measured_on, splits.remarks)
        return Sources(train, validation, description)
    training, held_out, record = hold_out(train, holdout, before=before)
    measured_on = f"{len(held_out)} of these {len(train)} images, held out (holdout={holdout:g})"
    description = _describe_splits(training_split, trained_on, None, measured_on, splits.remarks)
    return Sources(training, held_out, description, record)


def open_streams(
    name: str,
    *,
    split: str = "train",
    image_column: str | None = None,
    dataset_config: str | None = None,
    holdout: float = 0.05,
    max_validation: int = _IN_MEMORY,
    value_range: ValueRange | None = None,
    max_pixels: int | None = None,
    notes: Path | None = None,
    before: HeldOut | None = None,
) -> StreamSources:
    """Opens the shards to train with, and reads the images to validate with into memory.

    Validation takes about ``max_validation`` images: the first ones of shards spread over the split
    `validation` (or `val`, `valid`), else `test`; else up to as many from the beginnings of the training
    shards, which are then not trained with: see ``choose_held_out``.

    Args:
        name: tar files, tables or a hub dataset; this and the other arguments as in ``DataSelection``.
        notes: a folder for the numbers of rows in shards: see ``TableShards``.
        before: the ``record`` of the sources that the run had before.

    Raises:
        ValueError: there are no such data, no such split or column, or they cannot be streamed.
        BrokenImageError: a shard cannot be reached.
    """
    located = locate(name)
    _check_options(DataSelection(name, split, image_column, dataset_config), located)
    if located.kind not in ("hub", "tars", "tables"):
        raise ValueError(
            f"name {name!r} cannot be streamed: streaming is for tar files, parquet and arrow files and "
            "datasets of the hub; set streaming=false, which reads images where they are"
        )
    tables = stream_hub_dataset(located.hub_id, dataset_config) if located.kind == "hub" else {}
    levels = check_value_range(value_range)

    def open_split(split: str) -> Shards:
        if located.kind == "tars":
            return TarShards(located.splits[split], image_column, levels, max_pixels)
        table = tables[split] if tables else stream_table_files(located.splits[split], split)
        return TableShards(table, image_column, levels, notes, max_pixels)

    names = list(tables or located.splits)
    training_split = match_split(name, split, names)
    if training_split not in names:
        raise ValueError(f"split {split!r} of {name!r}: a stream cannot be sliced; set streaming=false")
    train = open_split(training_split)
    measured = validation_split(names, training_split)
    if measured is None:
        held_out = choose_held_out(train, holdout, max_validation, before.shards if before else None)
        validation = read_held_out(train, held_out)
        record = HeldOut(shards={train.label(shard): count for shard, count in held_out.items()})
        measured_on = f"{len(validation)} of these, held out (holdout={holdout:g})"
    else:
        held_out, record = {}, HeldOut()
        shards = open_split(measured)
        validation = read_first(shards, max_validation)
        measured_on = f"the first images of {shards.describe()}"
    description = _describe_splits(training_split, train.describe(), measured, measured_on, located.remarks)
    return StreamSources(train, held_out, validation, description, record)


@dataclass(frozen=True)
class _Splits:
    """The splits that data have, and how to open one of them."""

    names: list[str]
    open: Callable[[str], ImageSource]
    remarks: tuple[str, ...] = ()


def _find_splits(selection: DataSelection) -> _Splits:
    name, column, max_pixels = selection.name, selection.image_column, selection.max_pixels
    levels = check_value_range(selection.value_range)
    located = locate(name)
    _check_options(selection, located)
    if located.kind == "hub":
        builder = prepare_hub_dataset(located.hub_id, selection.dataset_config)

        def open_hub_split(split: str) -> ImageSource:
            table = builder.as_dataset(split=split)
            return TableSource(table, split, column, levels, max_pixels=max_pixels)

        return _Splits(list(builder.info.splits), open_hub_split)

    photos = {"train": training_photos, "validation": validation_photos}
    names = list(photos if located.kind == "photos" else located.splits)

    def open_split(split: str) -> ImageSource:
        if split not in names:
            raise ValueError(f"split {split!r} of {name!r}: only datasets of the hub can be sliced")
        if located.kind == "photos":
            return photos[split]()
        paths = located.splits[split]
        if located.kind == "images":
            return open_images(paths, levels, max_pixels)
        if located.kind == "tars":
            return TarSource(paths, column, levels, max_pixels)
        if located.kind == "tables":
            table, files = open_table_files(paths)
            return TableSource(table, split, column, levels, files, max_pixels=max_pixels)
        import datasets

        return TableSource(
            datasets.load_from_disk(str(paths[0])), split, column, levels, max_pixels=max_pixels
        )

    return _Splits(names, open_split, located.remarks)


def _check_options(selection: DataSelection, located: Located) -> None:
    """Raises ValueError for a setting that does not apply to the kind of data."""
    if selection.dataset_config is not None and located.kind != "hub":
        raise ValueError(
            f"dataset_config={selection.dataset_config!r} belongs to datasets of the hub, not to "
            f"{selection.name!r}"
        )
    if selection.image_column is not None and located.kind in ("photos", "images"):
        raise ValueError(
            f"image_column={selection.image_column!r} is for tables and tar files, and {selection.name!r} "
            "holds image files"
        )


def _describe_splits(
    training_split: str, trained_on: str, measured: str | None, measured_on: str, remarks: Sequence[str]
) -> str:
    """Says in lines what is trained on and what is measured on (with its split ``measured``, if any)."""
    split = "" if measured is None else f"the split {measured!r}: "
    lines = [
        f"trained on: the split {training_split!r}: {trained_on}",
        f"measured on: {split}{measured_on}",
        *(f"note: {remark}" for remark in remarks),
    ]
    return "\n".join(map(printable, lines))
