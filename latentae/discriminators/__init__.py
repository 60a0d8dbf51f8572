"""Discriminators: networks that tell images from reconstructions."""

from latentae.discriminators.patchgan import PatchGAN

__all__ = ["PatchGAN"]
