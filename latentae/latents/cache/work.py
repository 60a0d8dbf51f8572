"""The work itself: shard after shard, read, encoded and written, the ranks taking turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from latentae import distributed
from latentae.console import progress_bar
from latentae.data import BrokenImageError
from latentae.data.annotations import Annotations
from latentae.distributed import fails_anywhere
from latentae.files import FullDiskError
from latentae.latents.cache.encoding import check_values, encode_batch
from latentae.latents.cache.loading import CacheImages, ImageBatch, batch_loader, batch_sizes
from latentae.latents.cache.options import CacheOptions
from latentae.latents.cache.planning import ShardPlan
from latentae.latents.cache.shard import write_shard
from latentae.models import LatentAutoencoder


class CacheError(ValueError):
    """What went wrong in the midst of encoding: met by one process, perhaps by it alone."""


class FailedElsewhereError(CacheError):
    """Another process has failed, and says why."""


@dataclass
class Work:
    """Encodes shards.

    Attributes:
        model: on the device it is to run on.
        images: what is encoded.
        annotations: of the same images.
        folder: where shards go; all ranks must see the same one.
        options: what is stored.
        say: told of progress and of broken images.
    """

    model: LatentAutoencoder
    images: CacheImages
    annotations: Annotations
    folder: Path
    options: CacheOptions
    say: Callable[[str], None]

    def do(self, shards: Sequence[ShardPlan], *, batch_size: int, workers: int) -> None:
        """Encodes shards and writes them; every rank must call it with the same ones.

        Shards are dealt to the ranks whole, so that what is in them does not depend on how many ranks there
        are. After each turn the ranks tell each other whether all is well.

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
            working = self._in_turn(own, writer, batch_size, workers)
            for _ in range(turns + 1):  # the last turn waits for what is being written
                try:
                    next(working, None)
                except Exception as error:  # raised below, when the others know of it
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

    def _in_turn(
        self, shards: Sequence[ShardPlan], writer: ThreadPoolExecutor, batch_size: int, workers: int
    ) -> Iterator[None]:
        """Encodes one of these shards each time it is asked for the next, while the one before is written."""
        device = self.model.device
        loader = batch_loader(
            self.images, shards, batch_size=batch_size, workers=workers, pin_memory=device.type == "cuda"
        )
        progress = progress_bar(sum(len(shard.indices) for shard in shards), "images encoded", self.say)
        batches = iter(loader) if shards else iter(())
        writing: Future[None] | None = None
        for shard in shards:
            parts = _Parts()
            for asked in batch_sizes(shard, batch_size):
                batch = next(batches)
                self._tell(batch)
                parts.add(self._encode(batch, device), batch)
                progress.update(asked)
            tensors = parts.tensors()
            check_values(tensors, self.options.dtype)
            if writing is not None:
                writing.result()
            writing = writer.submit(self._write, shard, tensors, parts)
            yield
        progress.close()
        if writing is not None:
            writing.result()

    def _encode(self, batch: ImageBatch, device: torch.device) -> dict[str, Tensor]:
        if batch.images is None:
            return {}
        return encode_batch(self.model, batch.images.to(device, non_blocking=True), self.options)

    def _tell(self, batch: ImageBatch) -> None:
        for reason in batch.broken:
            if self.options.broken == "stop":
                raise BrokenImageError(f"{reason}; broken='skip' leaves such images out")
            self.say(f"{'left out' if self.options.broken == 'skip' else 'replaced'}: {reason}")

    def _write(self, shard: ShardPlan, tensors: dict[str, Tensor], parts: _Parts) -> None:
        indices = parts.indices
        tensors["indices"] = torch.tensor(indices, dtype=torch.int64)
        if self.annotations.labels is not None:
            tensors["labels"] = torch.from_numpy(self.annotations.labels[indices])
        texts = {"names": [self.images.source.name(index) for index in indices]}
        if self.annotations.captions is not None:
            texts["captions"] = [self.annotations.captions(index) for index in indices]
        write_shard(self.folder / shard.file, tensors, texts=texts, skipped=parts.broken)


class _Parts:
    """A shard's batches so far.

    Tensors are fetched from the device one batch late, so that it computes while the program waits.
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
        """All rows so far, on the CPU."""
        self._fetch()
        names = self._fetched[0] if self._fetched else {}
        return {name: torch.cat([part[name] for part in self._fetched]) for name in names}

    def _fetch(self) -> None:
        if self._latest:
            self._fetched.append({name: tensor.cpu() for name, tensor in self._latest.items()})
        self._latest = {}
