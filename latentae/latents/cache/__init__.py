"""Latents on disk: an image set encoded once, read by as many trainings of a denoiser as one likes."""

from latentae.latents.cache.bucketing import SameShapeBatches
from latentae.latents.cache.dataset import LatentDataset
from latentae.latents.cache.encode import encode_dataset
from latentae.latents.cache.report import CacheReport

__all__ = ["CacheReport", "LatentDataset", "SameShapeBatches", "encode_dataset"]
