"""Latents on disk: a set of images is encoded once and read by any number of denoiser trainings."""

from latentae.latents.cache.dataset import LatentDataset, SameShapeBatches
from latentae.latents.cache.encode import CacheReport, encode_dataset
from latentae.latents.cache.pairs import ImagesWithLatents

__all__ = ["CacheReport", "ImagesWithLatents", "LatentDataset", "SameShapeBatches", "encode_dataset"]
