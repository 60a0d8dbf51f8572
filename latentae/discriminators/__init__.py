"""Discriminators: networks that tell images from reconstructions, and what they are shown of them."""

from latentae.discriminators.augmentation import DiffAugment
from latentae.discriminators.patchgan import PatchGAN

__all__ = ["DiffAugment", "PatchGAN"]
