"""The `data` section: the source of the images, and how they are cropped, held out, checked and cached."""

from typing import Annotated

from pydantic import Field

from latentae.config.schema.base import (
    Count,
    CountOrZero,
    Downscale,
    Range,
    Section,
    Share,
    Size,
    Sizes,
    Text,
)

HalfTurn = Annotated[float, Field(ge=0, le=0.5)]


class ColorJitterConfig(Section):
    """Random changes to the colours of the training images. All of them keep the images in their range."""

    probability: Share = 1.0
    """Share of the crops whose colours are changed. The others stay as they are."""
    permute: bool = False
    """Put the three channels into a random order."""
    hue: HalfTurn = 0.0
    """Largest rotation of the hue in turns, either way. 0.5: every hue. Greys stay grey."""
    saturation: Share = 0.0
    """Largest relative change of the saturation, either way. 1: from grey to twice as saturated."""
    contrast: Share = 0.0
    """Largest relative change of the contrast, either way, around mid-grey."""
    brightness: Share = 0.0
    """Largest change of the brightness, either way, as a share of the range from black to white."""

    @property
    def changes_nothing(self) -> bool:
        """Whether every image stays as it is."""
        strengths = (self.permute, self.hue, self.saturation, self.contrast, self.brightness)
        return self.probability == 0 or not any(strengths)


class DataConfig(Section):
    """The training images."""

    name: Text = "photos"
    """`photos` (a few built-in photographs), a folder of images, tar, parquet or arrow files (one file, a
    folder of them, or a pattern such as `shards/{000..099}.tar`), or the name of a dataset on the hub."""
    split: Text = "train"
    """Split of the dataset to train on."""
    dataset_config: Text | None = None
    """Configuration of a hub dataset that has several; null: its default."""
    image_column: Text | None = None
    """Column that holds the images; null: the only image column. For tar files, the file extension of the
    images; null: the one image of each sample."""
    streaming: bool = False
    """true: read tar files, tables and hub datasets sequentially, without an index or a local copy. false:
    read images in random order, which first builds an index or downloads a copy."""
    shuffle_block: Count = 512
    """With streaming, the number of images that are shuffled together. Each worker keeps this many in memory,
    still encoded."""
    value_range: Range | None = None
    """Stored numbers [low, high] that stand for black and white, in arrays and in images with more than 8
    bits; null: 0 and 65535 for 16 bits, 0 and 1 for floats."""
    max_pixels: Count = 200_000_000
    """Largest image that is decoded, in pixels, because a small file can unpack to more than the memory
    holds. Larger images count as unreadable. Arrays have no limit."""
    alpha: bool = False
    """Whether the images are RGBA, with transparency in the fourth of four channels. true: the losses see the
    images over random, black and white backgrounds, and colours under transparent pixels are not learned.
    false: channels are channels, such as the bands of a satellite."""
    image_size: Count | Size
    """Side of the square training images in pixels, or [height, width]. It must be a multiple of the model's
    downsampling factor, and at least 31 for the measurement at the end."""
    resolutions: Sizes | None = None
    """Sizes [height, width] of the training images; each batch uses one of them at random. null: always
    `image_size`. Measurements use `image_size` in either case."""
    downscale: Downscale | None = None
    """Range [low, high] of source pixels per training pixel along a side. Each crop draws a value and is
    scaled down by it. null: the largest crop that fits."""
    random_flip: bool = False
    """Mirror half of the images left to right, at random."""
    color_jitter: ColorJitterConfig | None = None
    """Random changes to the colours of RGB and RGBA training images (arXiv 2006.06676). It helps where few
    images show few colours. Measurements use the true colours. null: none."""
    latents: Text | None = None
    """Folder of latents of these images that `latentae encode` wrote with the model that the run starts from.
    With `freeze_encoder`, training decodes them and the encoder does not run. Images are cropped as they were
    for the latents, at the centre. `random_flip` needs latents made with `--flips`. null: the encoder runs in
    every step."""
    num_workers: CountOrZero = 2
    """Processes per training process that load images; 0: the training process loads them itself."""
    holdout: Annotated[float, Field(gt=0, le=0.5)] = 0.05
    """Share of the images that is kept out of training for measurements, where the dataset has no validation
    split."""
    max_validation: Count = 2000
    """Largest number of images that are measured on."""
    max_broken: CountOrZero = 100
    """Number of unreadable images to skip before the run stops."""
    check_images: CountOrZero = 256
    """Number of images to open before training starts, so that broken ones are reported early: this many
    training images (none with streaming) and as many validation images; 0: none."""
    cache_megabytes: CountOrZero = 1024
    """Memory for decoded images in MiB, per machine and shared by all its processes. A quarter of it is for
    validation images. 0: no cache."""

    @property
    def height_and_width(self) -> tuple[int, int]:
        """Height and width of the training images in pixels."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else size

    @property
    def training_sizes(self) -> tuple[tuple[int, int], ...]:
        """Every height and width that a training batch may have."""
        return self.resolutions or (self.height_and_width,)
