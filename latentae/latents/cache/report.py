"""What became of an encoding."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CacheReport:
    """A finished cache.

    Attributes:
        folder: of the cache.
        images: that it holds.
        shards: files that hold them.
        bytes: of all shards.
        encoded: images that this call has encoded, on all ranks; the others were there.
        seconds: that took.
        skipped: ``name: reason`` of images that could not be decoded.
    """

    folder: Path
    images: int
    shards: int
    bytes: int
    encoded: int
    seconds: float
    skipped: list[str]

    @property
    def bytes_per_image(self) -> float:
        return self.bytes / self.images

    def __str__(self) -> str:
        size = f"{self.bytes / 2**20:.1f} MiB, {self.bytes_per_image:,.0f} bytes an image"
        where = f"{self.images} images in {self.shards} shard(s), {size}: {self.folder}"
        if not self.encoded:
            return f"complete, nothing to do: {where}"
        return f"{where}; {self.encoded} encoded now, {self.encoded / max(self.seconds, 1e-9):.1f} a second"
