"""Sources of images, decoding, crops, datasets and loaders.

The path of an image from its file to a batch, one module per step:

1. ``open``: ``locate`` finds what a name means, and ``open_source`` returns an ``ImageSource`` (``source``):
   ``FolderSource`` (``folder``), ``TarSource`` (``tar``), ``TableSource`` (``table``), or ``photos``.
2. ``ImageSource.load(index, channels)`` reads the bytes; ``decode.decode_image`` decodes them: [H, W, C].
3. ``dataset``: ``ImageDataset[epoch, index]`` loads an image and crops it by ``transforms``: [C, h, w].
   ``color_jitter`` may change its colours.
4. ``loader``: ``training_loader`` chooses the indices per step and rank, and joins samples to a ``Batch``.
5. Streams: ``stream.ImageStream`` reads ``TarShards`` or ``TableShards`` in order and makes the same samples.

Modules take plain arguments: they know neither the config nor the models.
"""

from latentae.data.arrays import read_array, to_pixels
from latentae.data.color_jitter import ColorJitter, with_true_colors
from latentae.data.dataset import ImageDataset, Sample, check_images, without_broken
from latentae.data.decode import IMAGE_SUFFIXES, BrokenImageError, decode_image
from latentae.data.folder import FolderSource
from latentae.data.holdout import HeldOut, split_holdout
from latentae.data.loader import Batch, training_loader, validation_loader
from latentae.data.open import (
    DataSelection,
    Sources,
    StreamSources,
    open_source,
    open_sources,
    open_streams,
)
from latentae.data.photos import training_photos, validation_photos
from latentae.data.source import (
    CachedSource,
    ImageSource,
    SubsetSource,
    describe_source,
    take_evenly,
    whole_images,
)
from latentae.data.stream import (
    ImageStream,
    Shards,
    StreamPlace,
    describe_size,
    epoch_size,
    sample_dataset,
)
from latentae.data.table import TableSource
from latentae.data.tar import TarShards, TarSource
from latentae.data.transforms import CenterCrop, RandomCrop, Transform
from latentae.data.workers import WorkerDiedError

__all__ = [
    "IMAGE_SUFFIXES",
    "Batch",
    "BrokenImageError",
    "CachedSource",
    "CenterCrop",
    "ColorJitter",
    "DataSelection",
    "FolderSource",
    "HeldOut",
    "ImageDataset",
    "ImageSource",
    "ImageStream",
    "RandomCrop",
    "Sample",
    "Shards",
    "Sources",
    "StreamPlace",
    "StreamSources",
    "SubsetSource",
    "TableSource",
    "TarShards",
    "TarSource",
    "Transform",
    "WorkerDiedError",
    "check_images",
    "decode_image",
    "describe_size",
    "describe_source",
    "epoch_size",
    "open_source",
    "open_sources",
    "open_streams",
    "read_array",
    "sample_dataset",
    "split_holdout",
    "take_evenly",
    "to_pixels",
    "training_loader",
    "training_photos",
    "validation_loader",
    "validation_photos",
    "whole_images",
    "with_true_colors",
    "without_broken",
]
