"""Images in a column of a table: parquet and arrow files, saved `datasets`, and the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from latentae.data.cells import choose_image_column, decode_cell, image_table
from latentae.data.folder import split_files
from latentae.data.image_source import Pixels
from latentae.data.levels import ValueRange

TABLE_SUFFIXES = (".parquet", ".arrow")


class TableSource:
    """The images of one column of a map-style `datasets.Dataset`, named `label[row]`.

    Args:
        dataset: a `datasets.Dataset`.
        label: what rows are called, usually the split.
        image_column: the column; None: see `choose_image_column`. It may hold files' bytes, paths, or both
            (see `decode_image`), or arrays (see `to_pixels`).
        value_range: see `decode_image`.

    Raises ValueError if there is no such column or it cannot hold images.
    """

    def __init__(
        self,
        dataset: Any,
        label: str,
        image_column: str | None = None,
        value_range: ValueRange | None = None,
    ) -> None:
        self.label = label
        self.table = dataset
        self.value_range = value_range
        self.image_column = find_image_column(dataset, image_column)
        try:
            feature = dataset.features[self.image_column]
            self._dataset, self._array_dtype = image_table(dataset, self.image_column, feature)
        except ValueError as error:
            raise ValueError(f"{error}: choose one of {', '.join(dataset.column_names)}") from error
        if len(self._dataset) == 0:
            raise ValueError(f"the split {label!r} has no rows")

    def __len__(self) -> int:
        return len(self._dataset)

    def name(self, index: int) -> str:
        return f"{self.label}[{index}]"

    def load(self, index: int, channels: int, minimum_side: int | None = None) -> Pixels:
        cell = self._dataset[index][self.image_column]
        return decode_cell(
            cell, self.name(index), self._array_dtype, self.value_range, channels, minimum_side
        )


def find_image_column(dataset: Any, image_column: str | None = None) -> str:
    """The name of a `datasets.Dataset`'s column with the images: see `choose_image_column`."""
    return choose_image_column(dataset.features, image_column)


def table_files(folder: Path) -> dict[str, list[Path]]:
    """Split -> the parquet and arrow files below `folder` that belong to it, sorted: see `split_files`."""
    return split_files(folder, TABLE_SUFFIXES)


def saved_splits(folder: Path) -> dict[str, Path]:
    """Split -> folder, for what `save_to_disk` of a Dataset or DatasetDict wrote; else empty."""
    if (folder / "state.json").is_file():
        return {"train": folder}
    return {path.parent.name: path.parent for path in sorted(folder.glob("*/state.json"))}


def open_table_files(files: Sequence[Path]) -> Any:
    """One `datasets.Dataset` of all these files, either all parquet or all arrow.

    Arrow files are mapped into memory where they lie. Parquet is converted once, into the cache of
    `datasets`. Raises ValueError if they cannot be read together.
    """
    import datasets

    suffixes = {path.suffix.lower() for path in files}
    if len(suffixes) > 1:
        raise ValueError(f"{files[0].parent} mixes {' and '.join(sorted(suffixes))} files: keep one kind")
    names = [str(path) for path in files]
    try:
        if suffixes == {".arrow"}:
            return datasets.concatenate_datasets([datasets.Dataset.from_file(name) for name in names])
        return datasets.Dataset.from_parquet(names)
    except Exception as error:  # pyarrow's, datasets' and the file system's errors share no base
        raise ValueError(
            f"cannot read {names[0]} ({len(names)} file(s) of its split): {first_line(error)}"
        ) from error


def open_saved(folder: Path) -> Any:
    """The `datasets.Dataset` that `save_to_disk` wrote into `folder`."""
    import datasets

    return datasets.load_from_disk(str(folder))


def prepare_hub_dataset(name: str, dataset_config: str | None) -> Any:
    """Download dataset `name` of the hub, if its cache does not hold it, and return its builder.

    The builder knows its splits (`.info.splits`) and opens one by `.as_dataset(split=...)`. Raises
    ValueError if there is no such dataset, it cannot be reached, or it has no such config.
    """
    import datasets

    with hub_errors(name, dataset_config):
        builder = datasets.load_dataset_builder(name, dataset_config)
        builder.download_and_prepare()
    return builder


@contextmanager
def hub_errors(name: str, dataset_config: str | None) -> Iterator[None]:
    """Turns whatever fails in its body into a ValueError that says what to check."""
    try:
        yield
    except Exception as error:  # the hub's, httpx's and datasets' errors share no base
        chosen = "" if dataset_config is None else f" (dataset_config {dataset_config!r})"
        raise ValueError(
            f"name {name!r}{chosen} is neither 'photos', nor a file or folder here, and as a dataset of the "
            f"Hugging Face hub it failed: {first_line(error)}. Check its spelling and dataset_config, the "
            "network (HF_HUB_OFFLINE) and your login, or give the path of a folder of images"
        ) from error


def first_line(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
