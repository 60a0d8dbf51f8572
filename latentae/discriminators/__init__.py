"""Discriminators, networks that tell images from reconstructions, and the augmentation of their inputs."""

from latentae.discriminators.augmentation import DiffAugment
from latentae.discriminators.frozen_features import FrozenFeatures
from latentae.discriminators.patchgan import PatchGAN
from latentae.discriminators.wavelet import WaveletDiscriminator

__all__ = ["DiffAugment", "FrozenFeatures", "PatchGAN", "WaveletDiscriminator"]
