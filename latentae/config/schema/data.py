"""Where images come from and what is done to them."""

from typing import Annotated

from pydantic import Field

from latentae.config.schema.base import Count, CountOrZero, Downscale, Section, Size, Text


class DataConfig(Section):
    """The training images."""

    name: Text = "photos"
    """`photos` (a few built-in photographs), a folder of images, or the name of a dataset on the hub."""
    split: Text = "train"
    """Split of the dataset to train on."""
    dataset_config: Text | None = None
    """Configuration of a hub dataset that has several; null: its default."""
    image_column: Text | None = None
    """Column that holds the images; null: the only image column there is."""
    image_size: Count | Size
    """Side of the square training images in pixels, or [height, width]; a multiple of the model's factor."""
    downscale: Downscale | None = None
    """Source pixels per training pixel, drawn from this range [low, high] before the crop; null: the
    largest crop that fits."""
    random_flip: bool = False
    """Mirror half of the images left to right."""
    num_workers: CountOrZero = 2
    """Processes that load images, per training process; 0: the training process itself."""
    holdout: Annotated[float, Field(gt=0, le=0.5)] = 0.05
    """Share of the images kept out of training, to measure on, where the dataset has no split for that."""
    max_broken: CountOrZero = 100
    """Unreadable images that are skipped before the run is stopped."""
    check_images: CountOrZero = 1000
    """Images that are opened before training starts, to report broken ones early; 0: none."""
    cache_megabytes: CountOrZero = 1024
    """Memory for decoded images, in megabytes; 0: none are kept."""

    @property
    def height_and_width(self) -> tuple[int, int]:
        """Height and width of the training images in pixels."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else size
