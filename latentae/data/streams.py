"""From the name of the data to a stream of them: tables, tar files and hub datasets, read as they come."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from latentae.data.holdout import HeldOut
from latentae.data.image_source import ImageSource
from latentae.data.levels import check_value_range
from latentae.data.locate import locate, match_split, validation_split
from latentae.data.shards import Shards
from latentae.data.sources import check_options, describe_splits
from latentae.data.stream_source import choose_held_out, read_first, read_held_out
from latentae.data.table_shards import TableShards, stream_hub_dataset, stream_table_files
from latentae.data.tar import TarShards

_IN_MEMORY = 2000


@dataclass(frozen=True)
class StreamSources:
    """The images of a training run that streams; no image is in both.

    Attributes:
        train: the shards.
        held_out: shard -> how many of its first images belong to `validation`, and not to training.
        validation: the images to measure on.
        description: which splits they are, where they lie and what was left out; for people.
        record: what decides what is held out when there are more shards.
    """

    train: Shards
    held_out: dict[int, int]
    validation: ImageSource
    description: str = ""
    record: HeldOut = field(default_factory=HeldOut)


def open_streams(
    name: str,
    *,
    split: str = "train",
    image_column: str | None = None,
    dataset_config: str | None = None,
    holdout: float = 0.05,
    max_validation: int = _IN_MEMORY,
    value_range: tuple[float, float] | None = None,
    max_pixels: int | None = None,
    notes: Path | None = None,
    before: HeldOut | None = None,
) -> StreamSources:
    """The shards to train with, and the images to validate with, which are read into memory.

    Validation takes about `max_validation` images, the first ones of shards spread over the split
    `validation` (or `val`, `valid`), else `test`; else up to as many from the beginnings of the training
    shards, which are then not trained with: see `choose_held_out`.

    Args:
        name: tar files, tables or a hub dataset; and with it the other arguments as in `open_source`.
        notes: a folder in which to note what shards hold: see `TableShards`.
        before: the `record` of the sources that the run has had before.

    Raises:
        ValueError: there are no such data, no such split or column, or they cannot be streamed.
        BrokenImageError: a shard cannot be reached.
    """
    located = locate(name)
    check_options(name, located, image_column=image_column, dataset_config=dataset_config)
    if located.kind not in ("hub", "tars", "tables"):
        raise ValueError(
            f"name {name!r} is not to be streamed: streaming is for tar files, parquet and arrow files and "
            "datasets of the hub; set streaming=false, with which images are read where they are"
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
        where = f"{len(validation)} of these, held out (holdout={holdout:g})"
    else:
        held_out, record = {}, HeldOut()
        shards = open_split(measured)
        validation = read_first(shards, max_validation)
        where = f"the first images of {shards.describe()}"
    description = describe_splits(training_split, train.describe(), measured, where, located.remarks)
    return StreamSources(train, held_out, validation, description, record)
