"""Which images a cache is of, with what is known about each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from latentae import distributed
from latentae.data import FolderSource, ImageSource, SubsetSource, open_source, take_evenly
from latentae.data.annotations import Annotations, read_annotations
from latentae.data.metadata import unread_columns


@dataclass(frozen=True)
class DataRequest:
    """Images, and how to read them.

    Attributes:
        images: themselves, or their name as ``open_source`` takes it.
        split, image_column, dataset_config, value_range, max_pixels: see ``open_source``; for names alone.
        annotations: whether labels and captions are read.
        label_column, caption_column: see ``read_annotations``.
        limit: so many images, evenly spread; None: all.

    Raises:
        ValueError: a column is named, and ``annotations`` is false.
    """

    images: str | Path | ImageSource
    split: str = "train"
    image_column: str | None = None
    dataset_config: str | None = None
    value_range: tuple[float, float] | None = None
    max_pixels: int | None = None
    annotations: bool = True
    label_column: str | None = None
    caption_column: str | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        for name in ("label_column", "caption_column"):
            if getattr(self, name) is not None and not self.annotations:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, but annotations is false, so nothing is read from "
                    "it: leave one of them out"
                )

    @property
    def name(self) -> str:
        """What the images are called."""
        if isinstance(self.images, str | Path):
            return f"{self.images} ({self.split})"
        return str(getattr(self.images, "folder", f"a {type(self.images).__name__}"))

    def open(self) -> tuple[ImageSource, Annotations]:
        """The images, and what is known about them; every rank must call it.

        Raises:
            ValueError: there are no such images, or no such labels or captions.
        """
        with distributed.main_first():  # the first rank downloads and indexes, the others find it done
            source = self._source()
            if len(source) == 0:
                raise ValueError("the source has no images")
            if self.limit is not None:
                source = take_evenly(source, self.limit)
            if not self.annotations:
                return source, Annotations()
            columns = {"label_column": self.label_column, "caption_column": self.caption_column}
            return source, read_annotations(source, **columns)

    def unread(self, source: ImageSource) -> str | None:
        """A sentence on columns beside images opened by name that ``open`` leaves out; None without any."""
        whole = source.source if isinstance(source, SubsetSource) else source
        wanted = self.annotations and self.caption_column is None and isinstance(self.images, str | Path)
        return unread_columns(whole) if wanted and isinstance(whole, FolderSource) else None

    def _source(self) -> ImageSource:
        if not isinstance(self.images, str | Path):
            return self.images
        return open_source(
            str(self.images),
            split=self.split,
            image_column=self.image_column,
            dataset_config=self.dataset_config,
            value_range=self.value_range,
            max_pixels=self.max_pixels,
        )
