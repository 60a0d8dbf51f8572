"""Small pictures for the tests, and a source that can break."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from latentae.data import BrokenImageError


def png_bytes(value: int, side: int = 8) -> bytes:
    """A file of a picture whose every value is `value`."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def write_png(path: Path, value: int, side: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png_bytes(value, side))
    return path


class ListSource:
    """`count` pictures of side 12, picture i of value i (modulo 256); those in `broken` cannot be decoded."""

    def __init__(self, count: int, broken: tuple[int, ...] = ()) -> None:
        self.count = count
        self.broken = broken
        self.loaded: list[tuple[int, int | None]] = []

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"picture{index}"

    def load(self, index: int, channels: int, minimum_side: int | None = None) -> np.ndarray:
        self.loaded.append((index, minimum_side))
        if index in self.broken:
            raise BrokenImageError(f"{self.name(index)}: it is\nbroken")
        rows, columns = np.mgrid[0:12, 0:12]
        picture = np.stack([rows * 20, columns * 20, 0 * rows + index % 256], axis=2).astype(np.uint8)
        return picture[..., 3 - channels :]
