"""What can be chosen about a cache of latents; all of it is noted in the cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from latentae.models import LatentAutoencoder

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
"""What latents can be stored in."""

PRECISIONS: dict[str, torch.dtype | None] = {"float32": None, "bfloat16": torch.bfloat16}
"""What the encoder can run in."""

SIZES = ("crop", "bucket", "refuse")
BROKEN = ("skip", "replace", "stop")

_FEWEST_IMAGES, _MOST_IMAGES, _SHARDS, _MOST_BYTES = 128, 1024, 64, 256 * 2**20


@dataclass(frozen=True)
class CacheOptions:
    """What a cache holds, and of what.

    Attributes:
        image_size: pixels; see ``sizes``. None with ``refuse``: whatever size the images have.
        sizes: what is done about images of several sizes. ``crop``: the shorter side is resized to
            ``image_size``, and the central square taken. ``bucket``: the aspect is kept, with about
            ``image_size``² pixels, and each shard holds latents of one size. ``refuse``: nothing is resized,
            and the images must all be of one size.
        flips: also encode each image mirrored left and right.
        latents: store latents: the posterior's mean and standard deviation, of VQ models the continuous ones.
        codes: store the indices of VQ models.
        dtype: of the stored latents, one of ``DTYPES``.
        precision: the encoder runs in, one of ``PRECISIONS``.
        broken: what is done about images that cannot be decoded. ``skip``: they are left out, and named.
            ``replace``: another image takes its place, chosen by (seed, index) as in training. ``stop``: an
            error.
        shard_size: images a shard; None only until the data are known.
        seed: chooses replacements.

    Raises:
        ValueError: one of them cannot be.
    """

    image_size: int | None
    sizes: str = "crop"
    flips: bool = False
    latents: bool = True
    codes: bool = False
    dtype: str = "float16"
    precision: str = "float32"
    broken: str = "skip"
    shard_size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in (
            ("sizes", SIZES),
            ("dtype", tuple(DTYPES)),
            ("precision", tuple(PRECISIONS)),
            ("broken", BROKEN),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, but must be one of {', '.join(choices)}"
                )
        for name, lowest in (("image_size", 1), ("shard_size", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise ValueError(f"{name} is {value}, but must be {lowest} or more")
        if self.image_size is None and self.sizes != "refuse":
            raise ValueError(f"image_size is needed where sizes is {self.sizes!r}: the side in pixels")
        if not self.latents and not self.codes:
            raise ValueError("latents is false and codes is false: there would be nothing to store")


def default_shard_size(images: int, image_size: int | None, model: LatentAutoencoder) -> int:
    """Images a shard: 1024 of a large data set, less of a small one, so that processes can share it.

    A power of two, which batches of the usual sizes divide, from 128 to 1024, but less where a shard would be
    larger than 256 MiB in float32. It does not depend on the number of processes, so the files do not either.
    """
    size = _FEWEST_IMAGES
    while size < _MOST_IMAGES and size * _SHARDS < images:
        size *= 2
    if image_size is not None:
        values = 2 * model.latents_channels * (-(-image_size // model.downsampling_factor)) ** 2
        while size > 1 and size * values * 4 > _MOST_BYTES:
            size //= 2
    return size
