"""Small pictures for the tests, and sources that can break."""

import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from diffusers.models.autoencoders.vae import Encoder
from PIL import Image
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from latentae.data import BrokenImageError
from latentae.data.source import EncodedImage


def png_bytes(value: int, side: int = 8) -> bytes:
    """A file of a picture whose every value is `value`."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def write_png(path: Path, value: int, side: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png_bytes(value, side))
    return path


def write_cutout(path: Path, side: int, red: float = 1) -> Path:
    """An array of RGBA [side, side, 4]: opaque red columns, and green ones that alpha hides."""
    columns = np.where(np.arange(side)[:, np.newaxis] % 3 == 0, (red, 0, 0, 1), (0, 1, 0, 0))
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.broadcast_to(columns, (side, side, 4)).astype(np.float32))
    return path


def shows_green(images: Tensor) -> bool:
    """Whether green is visible in images [..., 4, H, W] in [-1, 1] of the file above."""
    alpha, green = images[..., 3, :, :], images[..., 1, :, :]
    return bool((green[alpha > -0.9] > -0.9).any())


@contextmanager
def encoded_images() -> Iterator[list[Tensor]]:
    """Collects the images [B, C, H, W] that diffusers' encoders get in its body."""
    seen: list[Tensor] = []

    def note(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if isinstance(module, Encoder):
            seen.append(arguments[0].detach().cpu())

    hook = register_module_forward_pre_hook(note)
    try:
        yield seen
    finally:
        hook.remove()


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


def names(source) -> list[str]:
    """The names of all images of a source."""
    return [source.name(index) for index in range(len(source))]


def values(source) -> list[int]:
    """The first value of each image of a source."""
    return [int(source.load(index, 1)[0, 0, 0]) for index in range(len(source))]


def entry_values(entries) -> list[int]:
    """The first value of each image that shards yield."""
    return [int(entry.load(1, None)[0, 0, 0]) for entry in entries]


def make_files(folder: Path, *names: str) -> None:
    """Empty files of these names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def image_table(values: list[int], column: str = "image"):
    """A ``datasets.Dataset`` of pictures with these values, and the values as labels."""
    import datasets

    rows = {"label": values, column: [{"bytes": png_bytes(value), "path": None} for value in values]}
    features = datasets.Features({"label": datasets.Value("int64"), column: datasets.Image()})
    return datasets.Dataset.from_dict(rows, features=features)


def write_tables(folder: Path, counts: list[int], split: str = "train") -> list[Path]:
    """Parquet files of so many pictures each, whose values count on through all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    paths, begin = [], 0
    for shard, count in enumerate(counts):
        paths.append(folder / f"{split}-{shard}.parquet")
        image_table(list(range(begin, begin + count))).to_parquet(paths[-1], batch_size=2)
        begin += count
    return paths


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    """A tar file of these members, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def write_shards(folder: Path, counts: list[int], split: str = "train") -> list[Path]:
    """Tar files of so many samples each: a picture, whose values count on through all of them, and a text."""
    paths, value = [], 0
    for shard, count in enumerate(counts):
        members = {}
        for row in range(count):
            members |= {f"{row:04}.json": b"{}", f"{row:04}.png": png_bytes(value)}
            value += 1
        paths.append(write_tar(folder / f"{split}-{shard:03}.tar", members))
    return paths


class ListShards:
    """Shards of so many pictures each, those of a ListSource; picture r of shard s has the value 16 s + r."""

    def __init__(self, counts: list[int], broken: tuple[int, ...] = ()) -> None:
        self.counts = counts
        self.source = ListSource(16 * len(counts), broken)
        self.counted: list[int] = []
        self.opened: list[tuple[int, int, int]] = []

    def __len__(self) -> int:
        return len(self.counts)

    def count(self, shard: int) -> int:
        self.counted.append(shard)
        return self.counts[shard]

    def typical_count(self) -> int:
        return self.counts[0]

    def read(self, shard: int, start: int = 0, step: int = 1) -> Iterator[EncodedImage]:
        self.opened.append((shard, start, step))
        for row in range(start, self.counts[shard], step):
            value = 16 * shard + row
            yield EncodedImage(self.source.name(value), partial(self.source.load, value), row)
