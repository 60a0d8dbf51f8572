"""Images in: sources, decoding, crops and loaders. Plain arguments; no config, no models."""

from latentae.data.arrays import read_array, to_pixels
from latentae.data.dataset import ImageDataset, Sample, check_images, without_broken
from latentae.data.decode import IMAGE_SUFFIXES, BrokenImageError, decode_image
from latentae.data.folder import FolderSource
from latentae.data.holdout import split_holdout
from latentae.data.image_source import CachedSource, ImageSource, SubsetSource
from latentae.data.loader import Batch, training_loader, validation_loader
from latentae.data.photos import training_photos, validation_photos
from latentae.data.sources import Sources, open_source, open_sources
from latentae.data.table import TableSource
from latentae.data.transforms import CenterCrop, RandomCrop, Transform

__all__ = [
    "IMAGE_SUFFIXES",
    "Batch",
    "BrokenImageError",
    "CachedSource",
    "CenterCrop",
    "FolderSource",
    "ImageDataset",
    "ImageSource",
    "RandomCrop",
    "Sample",
    "Sources",
    "SubsetSource",
    "TableSource",
    "Transform",
    "check_images",
    "decode_image",
    "open_source",
    "open_sources",
    "read_array",
    "split_holdout",
    "to_pixels",
    "training_loader",
    "training_photos",
    "validation_loader",
    "validation_photos",
    "without_broken",
]
