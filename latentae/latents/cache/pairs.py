"""Images with their cached latents, for training a decoder without running the encoder that made them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentae.data import BrokenImageError, CenterCrop, ImageDataset, ImageSource
from latentae.data.dataset import Sample
from latentae.data.seeding import SAMPLE, generator
from latentae.data.source import EncodedImage, broken_image, spread_evenly
from latentae.evaluation.models import PRECISIONS
from latentae.latents.cache.dataset import LatentDataset
from latentae.latents.cache.folder import model_hash
from latentae.latents.cache.planning import DTYPES
from latentae.models import LatentAutoencoder

_ENCODED_AGAIN = 4
_TOLERANCE = 0.1  # of the latents' standard deviation; those of another image or crop differ by about 1
_ROUNDING = 2.0**-10  # of the latents: that of TensorFloat-32, by which devices may differ


class ImagesWithLatents(ImageDataset):
    """``dataset[epoch, index]`` is a ``Sample`` of an ``ImageDataset`` that also has ``latents``.

    These are the stored moments of the image, float32 and unscaled: [2, c, h, w] mean and standard deviation,
    or [1, c, h, w] of a model without a posterior. The image is cropped as it was for the cache: its shorter
    side is resized, by alpha if the cache did so, and the centre is taken. Whether it is mirrored is drawn
    by (seed, epoch, index).

    Images and latents are matched by the images' names. The cache may hold more images. An image that could
    not be decoded for the cache counts as broken here, too: another one, with its own latents, replaces it.

    Args:
        source, channels, seed, max_retries: as in ``ImageDataset``.
        folder: of the cache.
        image_size: (height, width) in pixels, which must be the cache's.
        flip: mirror half of the images; their mirrored latents must be stored.
        alpha: whether the images are RGBA, which the cache must know of arrays.

    Raises:
        ValueError: there is no finished cache, or it lacks latents of these images at this size.
    """

    def __init__(
        self,
        source: ImageSource,
        folder: str | Path,
        image_size: tuple[int, int],
        channels: int,
        seed: int = 0,
        max_retries: int = 16,
        *,
        flip: bool = False,
        alpha: bool = False,
    ) -> None:
        self.cache = LatentDataset(folder, sample=False, normalised=False)
        by_alpha = bool(self.cache.index.settings.options.get("alpha", False))
        super().__init__(source, CenterCrop(image_size, alpha=by_alpha), channels, seed, max_retries)
        self.flip = flip
        self._check_contents(image_size)
        self._rows = self._find_rows()
        if alpha != by_alpha:
            self._check_alpha(alpha)

    def __getitem__(self, key: tuple[int, int] | tuple[int, int, int]) -> Sample:
        epoch, index = key[:2]
        sample = super().__getitem__((epoch, index))
        shown = index
        if sample["broken"]:  # a replacement, whose name is known
            numbers = self._numbers(epoch, index)
            shown = next(number for number in numbers if self.source.name(number) == sample["name"])
        flipped = self.flip and bool(generator(self.seed, SAMPLE, epoch, index).random() < 0.5)
        if flipped:
            sample["images"] = sample["images"].flip(-1)
        sample["latents"] = self.cache.moments(int(self._rows[shown]), flipped=flipped)
        return sample

    @property
    def identity(self) -> str:
        """A SHA-256 of what the latents were made of and how: it stays when the cache is moved."""
        settings = self.cache.index.settings
        options = {name: value for name, value in settings.options.items() if name != "shard_size"}
        content = [settings.model["hash"], settings.data["hash"], options]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def describe(self) -> str:
        """Returns a sentence about the latents."""
        settings = self.cache.index.settings
        return (
            f"latents: {self.cache.folder} ({len(self.cache)} images, {settings.options['dtype']}, of "
            f"{settings.model['path']}); the encoder does not run, and images are cropped at their centre"
        )

    @torch.no_grad()
    def check_model(self, model: LatentAutoencoder) -> None:
        """Checks that the latents are what this model makes of these images, and encodes a few again.

        Args:
            model: on the device that it trains on, in float32.

        Raises:
            ValueError: the latents are of another model, or of other pixels than the images have now.
        """
        settings, folder = self.cache.index.settings, self.cache.folder
        found, wanted = model_hash(model, codes=settings.options["codes"]), settings.model["hash"]
        if found != wanted:
            raise ValueError(
                f"the latents in {folder} are of another encoder, that of {settings.model['path']} (hash "
                f"{wanted[:12]}), and the run's has the hash {found[:12]}: encode the images with the model "
                "that `model.pretrained` names into another folder, or use data.latents=null"
            )
        # Encode some of the images again, mirrored as they are drawn.
        samples = [self[0, index] for index in spread_evenly(_ENCODED_AGAIN, len(self))]
        network: Any = model
        shape = model.latents_shape(samples[0]["images"][None])
        if (stored := tuple(samples[0]["latents"].shape[1:])) != shape:
            raise ValueError(
                f"the latents in {folder} have the shape {list(stored)}, since their images were padded, and "
                f"the run's have {list(shape)}: use a data.image_size that is a multiple of "
                f"{model.image_multiple}"
            )
        for sample in samples:
            encoded = network.encode(sample["images"][None].to(network.device)).latents[0].float().cpu()
            error = self._error(sample["latents"][0], encoded, [other["latents"][0] for other in samples])
            if not error < 1:
                raise ValueError(
                    f"the latents in {folder} are not those of the image {sample['name']}, as it is now: "
                    f"encoding it again gives others (they differ {error:.1f} times as much as is allowed); "
                    "encode the images anew into another folder, or use data.latents=null"
                )

    def _error(self, stored: Tensor, encoded: Tensor, others: list[Tensor]) -> float:
        """Returns the RMS difference of an image's latents [c, h, w], in units of what is allowed.

        That is a tenth of the latents' standard deviation within their channels, and some rounding.

        Args:
            others: the latents of several images, which show how much latents vary.
        """
        options = self.cache.index.settings.options
        dtypes = (DTYPES[options["dtype"]], PRECISIONS[options["precision"]] or torch.float32)
        rounding = 4 * max(_ROUNDING, *(torch.finfo(dtype).eps for dtype in dtypes))
        spread = torch.stack(others).transpose(0, 1).flatten(1).std(dim=1).square().mean().sqrt()
        size = stored.square().mean().sqrt()
        return float((stored - encoded).square().mean().sqrt() / (_TOLERANCE * spread + rounding * size))

    def _encoded(self, index: int) -> EncodedImage:
        if self._rows[index] < 0:
            return broken_image(self.source.name(index), "it could not be decoded for the latents")
        return super()._encoded(index)

    def _check_contents(self, image_size: tuple[int, int]) -> None:
        """Raises ValueError for a cache of other sizes, without latents, or without mirrored ones."""
        index = self.cache.index
        if not index.settings.options["latents"]:
            raise ValueError("it holds codes alone: encode the images without --codes-only")
        sizes = sorted({(height, width) for height, width in (entry.size for entry in index.shards)})
        if sizes != [image_size]:
            shown = ", ".join(f"{height}x{width}" for height, width in sizes[:3])
            raise ValueError(
                f"its images had {shown}{' and other' if len(sizes) > 3 else ''} pixels, and the run's have "
                f"{image_size[0]}x{image_size[1]}: set data.image_size to the size of the latents, or encode "
                "the images at the run's size"
            )
        if self.flip and not index.settings.options["flips"]:
            raise ValueError(
                "it has no latents of mirrored images: use data.random_flip=false, or encode the images with "
                "--flips"
            )

    def _check_alpha(self, alpha: bool) -> None:
        """Raises ValueError where the run would resize images in another way than the cache did.

        It would where four channels are floats: those of uint8 are RGBA anyway (see ``resize_window``).
        """
        if self.channels != 4 or self.cache.index.settings.options["sizes"] == "refuse":  # not resized
            return
        for index in spread_evenly(_ENCODED_AGAIN, len(self)):
            try:
                picture = self.source.load(index, self.channels)
            except BrokenImageError:
                continue
            if picture.dtype != np.uint8:
                how, remedy = "as bands", "encode the images with --alpha into another folder"
                if not alpha:
                    how, remedy = (
                        "by their alpha",
                        f"use data.alpha=true, or {remedy.replace('with', 'without')}",
                    )
                raise ValueError(
                    f"it was made of arrays that were resized {how}, and data.alpha is {str(alpha).lower()}: "
                    f"{remedy}"
                )

    def _find_rows(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Returns the place of each image in the cache, int64 [n]; −1: it could not be decoded for it.

        Raises:
            ValueError: the cache lacks an image that it does not name as broken.
        """
        places = {name: row for row, name in reversed(list(enumerate(self.cache.names())))}
        names = [self.source.name(index) for index in range(len(self.source))]
        rows = np.array([places.get(name, -1) for name in names], np.int64)
        # Broken images are listed as `name: reason`, where either may have colons.
        lines = [line.split(": ") for line in self.cache.index.skipped]
        broken = {": ".join(parts[:end]) for parts in lines for end in range(1, len(parts))}
        missing = [names[index] for index in np.flatnonzero(rows < 0)]
        missing = [name for name in missing if " ".join(name.split()) not in broken]
        if missing:
            raise ValueError(
                f"it has no latents of {len(missing)} of the {len(names)} training images, such as "
                f"{missing[0]}: encode the images of data.name into another folder"
            )
        return rows
