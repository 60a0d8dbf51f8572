"""Discriminators, networks that tell images from reconstructions, and the augmentation of their inputs."""

from latentae.discriminators.augmentation import DiffAugment
from latentae.discriminators.patchgan import PatchGAN

__all__ = ["DiffAugment", "PatchGAN"]
