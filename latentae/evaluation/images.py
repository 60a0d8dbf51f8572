"""The images that an evaluation measures on."""

from __future__ import annotations

from latentae.data import ImageSource, open_source
from latentae.data.locate import locate, validation_split
from latentae.data.table import prepare_hub_dataset


def open_images(
    name: str,
    split: str | None = None,
    *,
    image_column: str | None = None,
    dataset_config: str | None = None,
    value_range: tuple[float, float] | None = None,
    max_pixels: int | None = None,
) -> tuple[str, ImageSource]:
    """The split that is measured, and its images.

    Args:
        name: ``photos``, a path, or a dataset of the hub.
        split: its split; None takes the validation split, else the test split, else the first there is.
        image_column, dataset_config, value_range, max_pixels: as ``open_source`` takes them.

    Raises:
        ValueError: there are no such data, or no such split.
    """
    if split is None:
        names = _splits(name, dataset_config)
        split = validation_split(names, "") or names[0]
    source = open_source(
        name,
        split=split,
        image_column=image_column,
        dataset_config=dataset_config,
        value_range=value_range,
        max_pixels=max_pixels,
    )
    return split, source


def _splits(name: str, dataset_config: str | None) -> list[str]:
    located = locate(name)
    if located.kind == "hub":
        return list(prepare_hub_dataset(located.hub_id, dataset_config).info.splits)
    if located.kind == "photos":
        return ["train", "validation"]
    return list(located.splits)
