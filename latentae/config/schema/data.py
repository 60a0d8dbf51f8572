"""Where images come from and what is done to them."""

from typing import Annotated

from pydantic import Field

from latentae.config.schema.base import Count, CountOrZero, Downscale, Range, Section, Size, Sizes, Text


class DataConfig(Section):
    """The training images."""

    name: Text = "photos"
    """`photos` (a few built-in photographs), a folder of images, tar, parquet or arrow files (one, a folder
    of them, or a pattern such as `shards/{000..099}.tar`), or the name of a dataset on the hub."""
    split: Text = "train"
    """Split of the dataset to train on."""
    dataset_config: Text | None = None
    """Configuration of a hub dataset that has several; null: its default."""
    image_column: Text | None = None
    """Column that holds the images; null: the only image column there is. In tar files the extension of the
    images; null: one image of each sample."""
    streaming: bool = False
    """Read tar files, tables and hub datasets front to back as they come, without an index or a copy of them
    here; false: any image in any order, which takes an index or a copy first."""
    shuffle_block: Count = 512
    """With streaming, images that are shuffled together; each worker keeps as many in memory, undecoded."""
    value_range: Range | None = None
    """Stored numbers [low, high] that stand for black and white in images of more than 8 bits and arrays;
    null: 0 and 65535 for 16 bits, 0 and 1 for floats."""
    max_pixels: Count = 200_000_000
    """Pixels of the largest picture that is decoded, since a small file may unpack to more than the memory
    holds; larger ones count as unreadable. Arrays have no limit."""
    image_size: Count | Size
    """Side of the square training images in pixels, or [height, width]; a multiple of the model's factor, and
    31 or more, which the measurement at the end needs."""
    resolutions: Sizes | None = None
    """Sizes [height, width] of the training images, of which each batch has one at random; null: all have
    `image_size`, which in any case is what is measured on."""
    downscale: Downscale | None = None
    """Source pixels per training pixel, drawn from this range [low, high] before the crop; null: the
    largest crop that fits."""
    random_flip: bool = False
    """Mirror half of the images left to right."""
    num_workers: CountOrZero = 2
    """Processes that load images, per training process; 0: the training process itself."""
    holdout: Annotated[float, Field(gt=0, le=0.5)] = 0.05
    """Share of the images kept out of training, to measure on, where the dataset has no split for that."""
    max_validation: Count = 2000
    """Images that are measured on at most."""
    max_broken: CountOrZero = 100
    """Unreadable images that are skipped before the run is stopped."""
    check_images: CountOrZero = 256
    """Images that are opened before training starts, to report broken ones early: so many to train on (with
    streaming: none), and as many to measure on; 0: none."""
    cache_megabytes: CountOrZero = 1024
    """Memory for decoded images on each machine, in MiB, for all processes there together; a quarter of it is
    for the images that are measured on; 0: none are kept."""

    @property
    def height_and_width(self) -> tuple[int, int]:
        """Height and width of the training images in pixels."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else size

    @property
    def training_sizes(self) -> tuple[tuple[int, int], ...]:
        """Every height and width that a training batch may have."""
        return self.resolutions or (self.height_and_width,)
