"""The photographs that scikit-image and scikit-learn carry in their wheels: data without a download.

They are found by where the packages lie, without importing either. 9 colour photographs train, windows
of 2 others validate: enough to see that a recipe works, far too few to train a model worth keeping. Asked for
other channels than 1, 3 or 4, they give bands mixed of their colours: see `latentae.data.bands`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from latentae.data.bands import BandSource
from latentae.data.decode import decode_image
from latentae.data.image_source import CachedSource, ImageSource, Pixels

_SKIMAGE, _SKLEARN = ("skimage", "data"), ("sklearn", "datasets/images")
_TRAINING = {
    "astronaut.png": _SKIMAGE,
    "coffee.png": _SKIMAGE,
    "motorcycle_left.png": _SKIMAGE,
    "motorcycle_right.png": _SKIMAGE,
    "rocket.jpg": _SKIMAGE,
    "hubble_deep_field.jpg": _SKIMAGE,
    "retina.jpg": _SKIMAGE,
    "ihc.png": _SKIMAGE,
    "flower.jpg": _SKLEARN,
}
_TRAINING_GREY = dict.fromkeys(
    ("camera.png", "brick.png", "grass.png", "gravel.png", "coins.png", "moon.png"), _SKIMAGE
)
_VALIDATION = {"china.jpg": _SKLEARN, "chelsea.png": _SKIMAGE}
_WINDOW, _STRIDE = 128, 86


class FileSource:
    """The given image files, named by their file names."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return self.paths[index].name

    def describe(self) -> str:
        """What they are; for people."""
        return f"{len(self)} built-in photographs"

    def load(self, index: int, channels: int, minimum_side: int | None = None) -> Pixels:
        return decode_image(self.paths[index], channels, minimum_side=minimum_side)


class WindowSource:
    """Square windows of the images of `source` in rows: as many as fit at every `stride` pixels.

    Named like `china.jpg[86,172]`, [top, left]. All sizes are in source pixels.
    """

    def __init__(self, source: ImageSource, window: int, stride: int) -> None:
        self.source = source
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
        # Without minimum_side: a window is a place in the full picture.
        return self.source.load(image, channels)[top : top + self.window, left : left + self.window]


def training_photos(include_grey: bool = False) -> ImageSource:
    """The 9 colour photographs for training, one item each, kept in memory.

    An epoch is therefore nine crops; ask for steps, not epochs. `include_grey` adds 6 grey ones.
    Raises ValueError if a package is not installed.
    """
    wanted = _TRAINING | _TRAINING_GREY if include_grey else _TRAINING
    return CachedSource(_photographs(wanted))


def validation_photos() -> ImageSource:
    """36 windows of 128 pixels: 24 of china.jpg, 12 of chelsea.png, none of a training photograph.

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
        "run `pip install scikit-image scikit-learn`, or give the path of a folder of images"
    )
