"""From the name of the data to its images: `photos`, a path, or a dataset of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from latentae.data.folder import open_images
from latentae.data.holdout import HeldOut, hold_out
from latentae.data.image_source import ImageSource, describe_source
from latentae.data.levels import ValueRange, check_value_range
from latentae.data.locate import Located, locate, match_split, validation_split
from latentae.data.names import printable
from latentae.data.photos import training_photos, validation_photos
from latentae.data.table import TableSource, join_table_files, open_saved, prepare_hub_dataset
from latentae.data.tar import TarSource


@dataclass(frozen=True)
class DataSelection:
    """Names one split of some data and says how to read it; ``open`` gives the images.

    Attributes:
        name, split, image_column, dataset_config, value_range, max_pixels: as ``open_source`` takes them.
    """

    name: str
    split: str = "train"
    image_column: str | None = None
    dataset_config: str | None = None
    value_range: ValueRange | None = None
    max_pixels: int | None = None

    def open(self) -> ImageSource:
        """Opens the images, as ``open_source`` does.

        Raises:
            ValueError: there are no such data, no such split or column, or no image in them.
        """
        return open_source(
            self.name,
            split=self.split,
            image_column=self.image_column,
            dataset_config=self.dataset_config,
            value_range=self.value_range,
            max_pixels=self.max_pixels,
        )


@dataclass(frozen=True)
class Sources:
    """The images of a training run; no image is in both.

    Attributes:
        train, validation: the images.
        description: which splits they are, where they lie and what was left out; for people.
        record: what decides what is held out when there are more images.
    """

    train: ImageSource
    validation: ImageSource
    description: str = ""
    record: HeldOut = field(default_factory=HeldOut)


@dataclass(frozen=True)
class _Options:
    """How to read what was found."""

    image_column: str | None
    dataset_config: str | None
    value_range: ValueRange | None
    max_pixels: int | None


@dataclass(frozen=True)
class _Splits:
    """The splits that data has, and how to open one of them."""

    names: list[str]
    open: Callable[[str], ImageSource]
    remarks: tuple[str, ...] = ()


def open_source(
    name: str,
    *,
    split: str = "train",
    image_column: str | None = None,
    dataset_config: str | None = None,
    value_range: ValueRange | None = None,
    max_pixels: int | None = None,
) -> ImageSource:
    """The images of one split of the data called `name`.

    Args:
        name: `photos` or `builtin:photos` (built in: see latentae.data.photos); or the path of a folder of
            images, of a parquet, arrow or tar file, of a folder of such files, or of what `datasets` saved to
            disk; or a pattern of such files or of image files (see `expand_pattern`); or the id of a dataset
            on the Hugging Face hub, which may begin with `hf://datasets/`. In the same folder tar files win
            over tables, and tables over arrays (.npy); pictures win over all of these, unless tar files or
            tables hold more images, where the name must say which are meant.
        split: a folder has the splits that its subfolders or its tables' and tar files' names say by a word
            (train, training or trainval; val, valid, validation, dev or holdout; test, testing, eval or
            evaluation), and otherwise the one split `train`, like a file or a pattern: see `divide_folder`
            and `split_files`. For the hub, any split expression of `datasets`, such as `train[:10%]`.
        image_column: for tables, the column with the images; None: found by its type or name. For tar
            files, the extension of the images: see `choose_images`.
        dataset_config: for the hub, the configuration of a dataset that has several.
        value_range: of images of more than 8 bits, the numbers that are black and white: see `to_fractions`.
        max_pixels: pixels of the largest picture that is decoded; larger ones count as broken. None:
            `MAX_PIXELS`.

    Raises:
        ValueError: there are no such data, no such split or column, or no image in them.
    """
    options = _Options(image_column, dataset_config, check_value_range(value_range), max_pixels)
    splits = _find_splits(name, options)
    return splits.open(match_split(name, split, splits.names))


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
    """The images to train with (`split`), and those to validate with.

    Validation takes the split `validation` (or `val`, `valid`), else `test`, else about the share
    `holdout` of the training images, which are then not trained with: see `hold_out`. `before` is the
    `record` of the sources that the run has had before. The other arguments and the errors are those of
    `open_source`.
    """
    options = _Options(image_column, dataset_config, check_value_range(value_range), max_pixels)
    splits = _find_splits(name, options)
    training_split = match_split(name, split, splits.names)
    train = splits.open(training_split)
    where = describe_source(train)
    measured = validation_split(splits.names, training_split)
    if measured is not None:
        validation = splits.open(measured)
        return Sources(
            train,
            validation,
            describe_splits(training_split, where, measured, describe_source(validation), splits.remarks),
        )
    training, held_out, record = hold_out(train, holdout, before=before)
    share = f"{len(held_out)} of these {len(train)} images, held out (holdout={holdout:g})"
    return Sources(
        training, held_out, describe_splits(training_split, where, None, share, splits.remarks), record
    )


def describe_splits(
    training_split: str, trained_on: str, measured: str | None, measured_on: str, remarks: Sequence[str]
) -> str:
    """Lines that say what is trained on and what is measured on; `measured` is the latter's split, if any."""
    split = "" if measured is None else f"the split {measured!r}: "
    lines = [
        f"trained on: the split {training_split!r}: {trained_on}",
        f"measured on: {split}{measured_on}",
        *(f"note: {remark}" for remark in remarks),
    ]
    return "\n".join(map(printable, lines))


def check_options(
    name: str, located: Located, *, image_column: str | None, dataset_config: str | None
) -> None:
    """Raise ValueError for a setting that does not apply to what was found."""
    if dataset_config is not None and located.kind != "hub":
        raise ValueError(f"dataset_config={dataset_config!r} belongs to datasets of the hub, not to {name!r}")
    if image_column is not None and located.kind in ("photos", "images"):
        raise ValueError(
            f"image_column={image_column!r} is for tables and tar files, and {name!r} holds image files"
        )


def _find_splits(name: str, options: _Options) -> _Splits:
    located = locate(name)
    check_options(name, located, image_column=options.image_column, dataset_config=options.dataset_config)
    if located.kind == "hub":
        return _hub_splits(located.hub_id, options)
    makers: dict[str, Callable[[], ImageSource]]
    if located.kind == "photos":
        makers = {"train": training_photos, "validation": validation_photos}
    else:
        makers = {
            split: partial(_open_paths, located.kind, paths, split, options)
            for split, paths in located.splits.items()
        }

    def open_split(split: str) -> ImageSource:
        if split not in makers:
            raise ValueError(f"split {split!r} of {name!r}: only datasets of the hub can be sliced")
        return makers[split]()

    return _Splits(list(makers), open_split, located.remarks)


def _open_paths(kind: str, paths: list[Path], split: str, options: _Options) -> ImageSource:
    if kind == "images":
        return open_images(paths, options.value_range, options.max_pixels)
    if kind == "tars":
        return TarSource(paths, options.image_column, options.value_range, options.max_pixels)
    table, files = (open_saved(paths[0]), None) if kind == "saved" else join_table_files(paths)
    return TableSource(
        table, split, options.image_column, options.value_range, files, max_pixels=options.max_pixels
    )


def _hub_splits(name: str, options: _Options) -> _Splits:
    builder = prepare_hub_dataset(name, options.dataset_config)

    def open_split(split: str) -> ImageSource:
        table = builder.as_dataset(split=split)
        return TableSource(
            table, split, options.image_column, options.value_range, max_pixels=options.max_pixels
        )

    return _Splits(list(builder.info.splits), open_split)
