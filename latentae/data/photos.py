"""Built-in data without a download: photographs in the wheels of scikit-image, scikit-learn and matplotlib.

None of these packages is imported. 11 photographs are for training, two of them without colours, and windows
of 2 others for validation: enough to see that a recipe works, far too few for a useful model. For other
numbers of channels than 1, 3 and 4, the colours are mixed to bands, as a stand-in for multispectral images.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from latentae.data.decode import PICTURE_CHANNELS, Pixels, decode_image
from latentae.data.source import CachedSource, ImageSource

_SKIMAGE, _SKLEARN = ("skimage", "data"), ("sklearn", "datasets/images")
_MATPLOTLIB = ("matplotlib", "mpl-data/sample_data")
_TRAINING = {
    "astronaut.png": _SKIMAGE,
    "coffee.png": _SKIMAGE,
    "motorcycle_left.png": _SKIMAGE,
    "motorcycle_right.png": _SKIMAGE,
    "rocket.jpg": _SKIMAGE,
    "retina.jpg": _SKIMAGE,
    "ihc.png": _SKIMAGE,
    "flower.jpg": _SKLEARN,
    "grace_hopper.jpg": _MATPLOTLIB,
    # Grey, for their textures:
    "camera.png": _SKIMAGE,
    "grass.png": _SKIMAGE,
}
_VALIDATION = {"china.jpg": _SKLEARN, "chelsea.png": _SKIMAGE}
_WINDOW, _STRIDE = 128, 86


@dataclass(eq=False)
class FileSource:
    """Image files, named by their file names."""

    paths: Sequence[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return self.paths[index].name

    def describe(self) -> str:
        return f"{len(self)} built-in photographs"

    def load(self, index: int, channels: int, minimum_side: int | None = None) -> Pixels:
        return decode_image(self.paths[index], channels, minimum_side)


class WindowSource:
    """Square windows of the images of `source`, in rows: all that fit, `stride` source pixels apart.

    Their names are like `china.jpg[86,172]`, [top, left].
    """

    def __init__(self, source: ImageSource, window: int, stride: int) -> None:
        self.source = self.whole = source
        self.window = window
        self._places: list[tuple[int, int, int]] = []  # image, top, left
        for index in range(len(source)):
            height, width = source.load(index, 3).shape[:2]
            self._places += [
                (index, top, left)
                for top in range(0, height - window + 1, stride)
                for left in range(0, width - window + 1, stride)
            ]

    def __len__(self) -> int:
        return len(self._places)

    def name(self, index: int) -> str:
        image, top, left = self._places[index]
        return f"{self.source.name(image)}[{top},{left}]"

    def load(self, index: int, channels: int, minimum_side: int | None = None) -> Pixels:
        image, top, left = self._places[index]
        # No minimum_side: a window is a part of the picture at its full size.
        return self.source.load(image, channels)[top : top + self.window, left : left + self.window]


def training_photos() -> ImageSource:
    """Returns the 11 photographs for training, kept in memory.

    An epoch is therefore 11 crops: count steps, not epochs. Raises ValueError if a package is not installed.
    """
    return CachedSource(_photographs(_TRAINING))


def validation_photos() -> ImageSource:
    """Returns 36 windows of 128 pixels: 24 of china.jpg and 12 of chelsea.png, none of a training photograph.

    Raises ValueError if a package is not installed.
    """
    return WindowSource(CachedSource(_photographs(_VALIDATION)), _WINDOW, _STRIDE)


def _photographs(places: dict[str, tuple[str, str]]) -> ImageSource:
    return BandSource(FileSource([_locate(*place, name) for name, place in places.items()]))


def _locate(package: str, folder: str, name: str) -> Path:
    spec = importlib.util.find_spec(package)
    for root in (spec.submodule_search_locations or []) if spec is not None else []:
        path = Path(root) / folder / name
        if path.is_file():
            return path
    raise ValueError(
        f"name 'photos': the photograph {name} of {package} is not installed; "
        "run `pip install scikit-image scikit-learn matplotlib`, or give the path of a folder of images"
    )


@dataclass(eq=False)
class BandSource:
    """The photographs of `source` with any number of channels, by `spectral_bands`.

    1, 3 and 4 channels come from the source itself. The bands contain no more information than the three
    colours: they show that a recipe runs, not what a model of real multispectral images can learn.
    """

    source: ImageSource

    def __len__(self) -> int:
        return len(self.source)

    def name(self, index: int) -> str:
        return self.source.name(index)

    def load(self, index: int, channels: int, minimum_side: int | None = None) -> Pixels:
        if channels in PICTURE_CHANNELS:
            return self.source.load(index, channels, minimum_side)
        return spectral_bands(self.source.load(index, 3, minimum_side), channels)


def spectral_bands(colours: Pixels, count: int) -> Pixels:
    """Mixes an RGB picture [H, W, 3] to `count` ≥ 2 bands [H, W, count] of the same dtype.

    The bands are evenly spaced from red over green to blue, and each is a linear mixture of its two
    neighbouring colours: with five bands the second is half red and half green.
    """
    mixed = colours.astype(np.float32) @ _band_weights(count)
    return np.rint(mixed).astype(np.uint8) if colours.dtype == np.uint8 else mixed


def _band_weights(count: int) -> NDArray[np.float32]:
    """Returns the share of each colour in each band, [3, count]; columns sum to one."""
    if count < 2:
        raise ValueError(f"count={count} must be 2 or more: bands reach from red to blue")
    positions = np.linspace(0, 2, count)  # red is at 0, green at 1, blue at 2
    return np.maximum(0, 1 - np.abs(positions - np.arange(3)[:, np.newaxis])).astype(np.float32)
