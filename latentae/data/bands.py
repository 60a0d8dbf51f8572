"""More bands than a photograph has, mixed from its colours: a stand-in for multispectral images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from latentae.data.decode import PICTURE_CHANNELS
from latentae.data.image_source import ImageSource, Pixels


class BandSource:
    """The photographs of `source`, given any number of channels by `spectral_bands`.

    1, 3 and 4 channels are the source's own. The bands hold no more than the three colours do: they show
    that a recipe runs, not what a model of real multispectral images can learn.
    """

    def __init__(self, source: ImageSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def name(self, index: int) -> str:
        return self.source.name(index)

    def load(self, index: int, channels: int, minimum_side: int | None = None) -> Pixels:
        if channels in PICTURE_CHANNELS:
            return self.source.load(index, channels, minimum_side)
        return spectral_bands(self.source.load(index, 3, minimum_side), channels)


def spectral_bands(colours: Pixels, count: int) -> Pixels:
    """`count` ≥ 2 bands [H, W, count] of an RGB picture [H, W, 3], in its dtype.

    The bands lie evenly spaced on the way from red over green to blue, and each is mixed linearly of the two
    colours that it lies between: with five bands the second is half red and half green.
    """
    mixed = colours.astype(np.float32) @ _band_weights(count)
    return np.rint(mixed).astype(np.uint8) if colours.dtype == np.uint8 else mixed


def _band_weights(count: int) -> NDArray[np.float32]:
    """[3, count], the share of each colour in each band; columns sum to one."""
    if count < 2:
        raise ValueError(f"count={count} must be 2 or more: bands reach from red to blue")
    positions = np.linspace(0, 2, count)  # red is at 0, green at 1, blue at 2
    return np.maximum(0, 1 - np.abs(positions - np.arange(3)[:, np.newaxis])).astype(np.float32)
