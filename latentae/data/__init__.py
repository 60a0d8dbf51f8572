"""Images in: sources, streams, decoding, crops and loaders. Plain arguments; no config, no models."""

from latentae.data.arrays import read_array, to_pixels
from latentae.data.batches import Batch
from latentae.data.dataset import ImageDataset, check_images, without_broken
from latentae.data.decode import IMAGE_SUFFIXES, BrokenImageError, decode_image
from latentae.data.folder import FolderSource
from latentae.data.holdout import HeldOut, split_holdout
from latentae.data.image_source import CachedSource, ImageSource, SubsetSource, describe_source, take_evenly
from latentae.data.loader import training_loader, validation_loader
from latentae.data.photos import training_photos, validation_photos
from latentae.data.samples import Sample
from latentae.data.shards import Shards, StreamPlace
from latentae.data.sources import DataSelection, Sources, open_source, open_sources
from latentae.data.stream import ImageStream
from latentae.data.stream_source import describe_size, epoch_size, sample_dataset
from latentae.data.streams import StreamSources, open_streams
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
    "without_broken",
]
