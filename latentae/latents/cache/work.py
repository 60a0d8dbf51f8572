"""Encodes shards: images are decoded in batches, encoded and written, and the ranks share the shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from latentae import distributed
from latentae.console import progress_bar
from latentae.data import BrokenImageError, CenterCrop, ImageSource
from latentae.data.annotations import Annotations
from latentae.data.seeding import REPLACEMENT, generator
from latentae.data.transforms import to_picture, to_tensor
from latentae.data.workers import WatchedLoader
from latentae.distributed import fails_anywhere
from latentae.evaluation.models import PRECISIONS
from latentae.files import FullDiskError
from latentae.latents.cache.folder import FLIPPED, write_shard
from latentae.latents.cache.planning import DTYPES, CacheOptions, ShardPlan, Size
from latentae.models import VQVAE, LatentAutoencoder

_MAX_RETRIES = 16  # as in training
_MOST_SHORT_CODES = 2**15


class CacheError(ValueError):
    """Encoding failed after it had begun, perhaps on this process alone."""


class FailedElsewhereError(CacheError):
    """Another process has failed and reports why."""


@dataclass
class ShardEncoder:
    """Encodes shards and writes them.

    Attributes:
        model: on the device that it runs on.
        images, annotations: of the data.
        folder: of the shards; all ranks must see the same one.
        options: of the cache.
        say: receives progress and broken images.
    """

    model: LatentAutoencoder
    images: CacheImages
    annotations: Annotations
    folder: Path
    options: CacheOptions
    say: Callable[[str], None]

    def encode(self, shards: Sequence[ShardPlan], *, batch_size: int, workers: int) -> None:
        """Encodes shards and writes them; every rank must call it with the same shards.

        Each shard is encoded by one rank, so its contents do not depend on the number of ranks. In each turn
        every rank encodes one shard; after it the ranks tell each other whether one has failed.

        Raises:
            CacheError: latents that are not finite; broken images, where ``options`` says to stop; a shard
                that cannot be written.
            FullDiskError: no room for a shard; the finished ones stay.
        """
        world_size = distributed.world_size()
        own = shards[distributed.rank() :: world_size]
        turns = -(-len(shards) // world_size)
        failure: Exception | None = None
        with ThreadPoolExecutor(max_workers=1) as writer:
            working = self._encode_in_turn(own, writer, batch_size, workers)
            for _ in range(turns + 1):  # the last turn waits until the last shard is written
                try:
                    next(working, None)
                except Exception as error:  # raised below, once the other ranks know of it
                    failure = error
                if fails_anywhere(failure is not None):
                    break
            else:
                return
        if failure is None:
            raise FailedElsewhereError(f"another process has failed; what is finished in {self.folder} stays")
        if isinstance(failure, ValueError | OSError) and not isinstance(failure, FullDiskError):
            raise CacheError(str(failure)) from failure
        raise failure

    def _encode_in_turn(
        self, shards: Sequence[ShardPlan], writer: ThreadPoolExecutor, batch_size: int, workers: int
    ) -> Iterator[None]:
        """Encodes one shard per step, while the shard before it is written."""
        device = self.model.device
        loader = batch_loader(
            self.images, shards, batch_size=batch_size, workers=workers, pin_memory=device.type == "cuda"
        )
        progress = progress_bar(sum(len(shard.indices) for shard in shards), "images encoded", self.say)
        batches = iter(loader) if shards else iter(())
        writing: Future[None] | None = None
        for shard in shards:
            # Encode the shard, batch by batch.
            parts = _ShardBatches()
            for _, asked in _batch_keys(shard, batch_size):
                batch = next(batches)
                self._report_broken(batch)
                encoded: dict[str, Tensor] = {}
                if batch.images is not None:
                    images = batch.images.to(device, non_blocking=True)
                    encoded = encode_batch(self.model, images, self.options)
                parts.add(encoded, batch)
                progress.update(len(asked))
            tensors = parts.tensors()
            check_values(tensors, self.options.dtype)
            # Hand it to the writer, which has one shard at a time.
            if writing is not None:
                writing.result()
            writing = writer.submit(self._write_shard, shard, tensors, parts)
            yield
        progress.close()
        if writing is not None:
            writing.result()

    def _report_broken(self, batch: ImageBatch) -> None:
        for reason in batch.broken:
            if self.options.broken == "stop":
                raise BrokenImageError(f"{reason}; broken='skip' leaves such images out")
            self.say(f"{'left out' if self.options.broken == 'skip' else 'replaced'}: {reason}")

    def _write_shard(self, shard: ShardPlan, tensors: dict[str, Tensor], parts: _ShardBatches) -> None:
        indices = parts.indices
        tensors["indices"] = torch.tensor(indices, dtype=torch.int64)
        if self.annotations.labels is not None:
            tensors["labels"] = torch.from_numpy(self.annotations.labels[indices])
        texts = {"names": [self.images.source.name(index) for index in indices]}
        if self.annotations.captions is not None:
            texts["captions"] = [self.annotations.captions(index) for index in indices]
        write_shard(self.folder / shard.file, tensors, texts=texts, skipped=parts.broken)


class _ShardBatches:
    """The batches of a shard that are encoded.

    Tensors are copied from the device one batch late, so that the device computes during the copy.
    """

    def __init__(self) -> None:
        self.indices: list[int] = []
        self.broken: list[str] = []
        self._fetched: list[dict[str, Tensor]] = []
        self._latest: dict[str, Tensor] = {}

    def add(self, tensors: dict[str, Tensor], batch: ImageBatch) -> None:
        self.indices += batch.indices
        self.broken += batch.broken
        self._fetch()
        self._latest = tensors

    def tensors(self) -> dict[str, Tensor]:
        self._fetch()
        names = self._fetched[0] if self._fetched else {}
        return {name: torch.cat([part[name] for part in self._fetched]) for name in names}

    def _fetch(self) -> None:
        if self._latest:
            self._fetched.append({name: tensor.cpu() for name, tensor in self._latest.items()})
        self._latest = {}


@dataclass
class ImageBatch:
    """A batch of images of one shard.

    Attributes:
        images: [B, C, H, W] float32 in [−1, 1]; None where no image could be decoded.
        indices: [B] of these images in the data.
        broken: ``name: reason`` of images that could not be decoded.
    """

    images: Tensor | None
    indices: list[int]
    broken: list[str]

    def pin_memory(self) -> ImageBatch:
        """Returns the batch in pinned memory, so that a GPU copies while it computes; the loader calls it."""
        return ImageBatch(
            None if self.images is None else self.images.pin_memory(), self.indices, self.broken
        )


class CacheImages(Dataset[ImageBatch]):
    """``images[size, indices]`` gives a batch of images at one size.

    Args:
        source: the images.
        channels: of each image.
        crop: resize and crop to the size; False: the images have that size.
        broken: ``skip``, ``replace`` or ``stop``: see ``CacheOptions``.
        seed: chooses replacements.
        alpha: whether four channels are RGBA: see ``resize_window``.
    """

    def __init__(
        self,
        source: ImageSource,
        channels: int,
        *,
        crop: bool,
        broken: str,
        seed: int,
        alpha: bool = False,
    ) -> None:
        self.source = source
        self.channels = channels
        self.crop = crop
        self.broken = broken
        self.seed = seed
        self.alpha = alpha

    def __getitem__(self, key: tuple[Size, Sequence[int]]) -> ImageBatch:
        size, indices = key
        batch = ImageBatch(None, [], [])
        images = []
        for index in indices:
            for candidate in self._candidates(index):
                try:
                    images.append(self._image(candidate, size))
                except BrokenImageError as error:
                    batch.broken.append(" ".join(str(error).split()))
                    continue
                batch.indices.append(candidate)
                break
        if images:
            batch.images = torch.stack(images)
        return batch

    def _candidates(self, index: int) -> list[int]:
        if self.broken != "replace":
            return [index]
        others = generator(self.seed, REPLACEMENT, 0, index).integers(len(self.source), size=_MAX_RETRIES)
        return [index, *others.tolist()]

    def _image(self, index: int, size: Size) -> Tensor:
        picture = self.source.load(index, self.channels)
        if not self.crop:
            return to_tensor(to_picture(picture))
        return CenterCrop(size, alpha=self.alpha)(picture)


def batch_loader(
    images: CacheImages, shards: Sequence[ShardPlan], *, batch_size: int, workers: int, pin_memory: bool
) -> WatchedLoader:
    """Returns a loader of the batches of these shards, in order."""
    keys = [key for shard in shards for key in _batch_keys(shard, batch_size)]
    return WatchedLoader(
        images,
        num_workers=workers,
        sampler=keys,
        batch_size=None,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # or the loader would draw from torch's global one
    )


def _batch_keys(shard: ShardPlan, batch_size: int) -> list[tuple[Size, Sequence[int]]]:
    """Returns the size and the indices of each batch of a shard."""
    starts = range(0, len(shard.indices), batch_size)
    return [(shard.size, shard.indices[start : start + batch_size]) for start in starts]


@torch.no_grad()
def encode_batch(model: LatentAutoencoder, images: Tensor, options: CacheOptions) -> dict[str, Tensor]:
    """Encodes a batch of images into the tensors that a cache stores, on the model's device.

    Args:
        model: in eval mode.
        images: [B, C, H, W] in [−1, 1], on the model's device.
        options: of the cache.

    Returns:
        ``mean`` [B, c, h, w], and ``std`` where the model has a posterior, unscaled, in ``options.dtype``;
        ``codes`` [B, h, w] or [B, depth, h, w], int16 or int32; for mirrored images the same names with the
        suffix ``_flipped``.
    """
    tensors = _encode_images(model, images, options)
    if options.flips:
        mirrored = _encode_images(model, images.flip(-1), options)
        tensors |= {f"{name}{FLIPPED}": tensor for name, tensor in mirrored.items()}
    return tensors


def check_codes(model: LatentAutoencoder, options: CacheOptions) -> None:
    """Raises ValueError where ``options`` asks for the codes of a model that has none."""
    if options.codes and not isinstance(model, VQVAE):
        raise ValueError(f"codes are of VQ models, and this is a {type(model).__name__}: leave codes out")


def check_values(tensors: dict[str, Tensor], dtype: str) -> None:
    """Raises ValueError where latents are not finite."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(
                f"the latents ({name}) hold values that are not finite in {dtype}: either they are too large "
                "for it, and dtype bfloat16 or float32 holds them, or the model's weights are damaged"
            )


def _encode_images(model: LatentAutoencoder, images: Tensor, options: CacheOptions) -> dict[str, Tensor]:
    autocast = PRECISIONS[options.precision]
    with nullcontext() if autocast is None else torch.autocast(images.device.type, autocast):
        output = model.encode(model.pad_for_denoiser(images.to(model.dtype)))
    posterior: Any = output.latent_dist
    dtype = DTYPES[options.dtype]
    tensors: dict[str, Tensor] = {}
    if options.latents:
        tensors["mean"] = posterior.mode().to(dtype)
        if hasattr(posterior, "std"):
            tensors["std"] = posterior.std.to(dtype)
    if options.codes:
        assert isinstance(model, VQVAE)
        short = model.num_codes <= _MOST_SHORT_CODES
        indices = model.quantize.indices(output.latents.to(model.dtype))
        tensors["codes"] = indices.to(torch.int16 if short else torch.int32)
    return tensors
