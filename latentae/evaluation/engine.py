"""An evaluation: models side by side on the same images, alone or shared among processes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from latentae import distributed
from latentae.evaluation.assembly import Assembled, assemble
from latentae.evaluation.block_measurement import measure_block, reference_features
from latentae.evaluation.blocks import BLOCK_SIZE, Block, ImageBlocks, block_loader
from latentae.evaluation.measures import Measures
from latentae.evaluation.shards import Shards, content_sha256
from latentae.evaluation.subject import Subject

# Raised when what a shard holds changes its meaning: shards of another version are not read.
_VERSION = 1


@dataclass(frozen=True)
class Settings:
    """How an evaluation runs; none but the last two change its numbers beyond rounding.

    Attributes:
        batch_size: images of one size that go through a model together.
        num_workers: processes that decode images, per process.
        cycle_images: how many of the first images go through the model again and again; a block at least.
        cycle_rounds: after how many rounds their drift is measured.
    """

    batch_size: int = 16
    num_workers: int = 0
    cycle_images: int = BLOCK_SIZE
    cycle_rounds: tuple[int, ...] = (1, 2, 5, 10)


@dataclass
class Evaluation:
    """Measures subjects on blocks of images; every rank makes one and calls ``run``.

    Attributes:
        blocks: the images.
        measures: the networks that judge.
        settings: how it runs.
        work: folder for what is measured so far; all processes must see the same one.
        device: where models and networks run.
        say: told of progress, on every rank.
    """

    blocks: ImageBlocks
    measures: Measures
    settings: Settings
    work: Path
    device: torch.device
    say: Callable[[str], None] = field(default=lambda text: None)

    def run(self, subjects: Sequence[Subject]) -> list[Assembled]:
        """The numbers of each subject, the same on every rank; what an earlier run measured is not again.

        Fixed blocks of consecutive images are dealt to the ranks whole, and their shards joined in order: so
        the numbers do not depend on how many ranks there are.

        Raises:
            ValueError: no image could be read.
        """
        shards = [self._shards(subject) for subject in subjects]
        self._measure(subjects, shards)
        distributed.barrier()
        numbers = range(len(self.blocks))
        return [
            assemble(
                (_present(own, number) for number in numbers),
                {name: self._references(own, name) for name in self.measures.features},
                {name: extractor.dimensions for name, extractor in self.measures.features.items()},
            )
            for own in shards
        ]

    def _measure(self, subjects: Sequence[Subject], shards: Sequence[Shards]) -> None:
        """Writes the shards of this rank's blocks that are not there yet."""
        own = range(distributed.rank(), len(self.blocks), distributed.world_size())
        missing = [number for number in own if not all(shard.has(number) for shard in shards)]
        if len(missing) < len(own):
            self.say(f"{len(own) - len(missing)} of {len(own)} blocks are measured already")
        for done, block in enumerate(block_loader(self.blocks, missing, self.settings.num_workers), start=1):
            references = self._reference_features(block)
            for subject, shard in zip(subjects, shards, strict=True):
                if shard.has(block.number):
                    continue
                measured = measure_block(
                    subject,
                    block,
                    self.measures,
                    self.device,
                    batch_size=self.settings.batch_size,
                    cycle_rounds=self._cycle_rounds(block),
                )
                shard.store(block.number, measured | references)
            for reason in block.unreadable:
                self.say(f"left out: {reason}")
            self.say(f"block {done} of {len(missing)}")

    def _cycle_rounds(self, block: Block) -> tuple[int, ...]:
        measured = block.number * BLOCK_SIZE < self.settings.cycle_images
        return self.settings.cycle_rounds if measured else ()

    def _reference_features(self, block: Block) -> dict[str, Tensor]:
        """Features of the originals, from the cache of all evaluations where the same images were seen."""
        found = {}
        content = content_sha256(block)
        for name, extractor in self.measures.features.items():
            cache = Shards(_cache_directory(), name, extractor.identity)
            cached = cache.load(content)
            if cached is None:
                batch_size = self.settings.batch_size
                cached = {"features": reference_features(block, extractor, self.device, batch_size)}
                cache.store(content, cached)
            found[f"reference.{name}"] = cached["features"]
        return found

    def _references(self, shards: Shards, name: str) -> Iterator[Tensor]:
        for number in range(len(self.blocks)):
            yield _present(shards, number)[f"reference.{name}"]

    def _shards(self, subject: Subject) -> Shards:
        what = {
            "version": _VERSION,
            "model": subject.sha256,
            "autocast": str(subject.autocast),
            "protocol": self.blocks.protocol.describe(),
            "images": self.blocks.list_sha256,
            "measures": self.measures.identities,
            "cycle": [self.settings.cycle_images, *self.settings.cycle_rounds],
        }
        return Shards(self.work, subject.name, json.dumps(what, sort_keys=True))


def _present(shards: Shards, number: int) -> dict[str, Tensor]:
    shard = shards.load(number)
    if shard is None:
        raise ValueError(
            f"{shards.path(number)} is missing: with several processes all must see the same output folder"
        )
    return shard


def _cache_directory() -> Path:
    root = (
        os.environ.get("LATENTAE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "latentae"
    )
    return Path(root).expanduser() / "reference_features"
