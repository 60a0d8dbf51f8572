"""An evaluation: models side by side on the same images, alone or shared among processes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from latentae import distributed
from latentae.evaluation.assembly import Assembled, assemble
from latentae.evaluation.block_measurement import Drift, measure_block, reference_features
from latentae.evaluation.blocks import BLOCK_SIZE, Block, ImageBlocks, block_loader, to_images
from latentae.evaluation.measures import Measures
from latentae.evaluation.models import Subject
from latentae.evaluation.progress import Progress
from latentae.evaluation.settings import Settings
from latentae.evaluation.shards import Shards, content_sha256, from_text, reference_cache, to_text

# Raised when what a shard holds changes its meaning: shards of another version are not read.
_VERSION = 2
# Blocks after which the processes meet: none is then left behind for as long as a process group has patience,
# and what stops one of them stops all.
_ROUNDS_TOGETHER = 8


class MeasuringError(ValueError):
    """What went wrong in the midst of measuring, in this process or in another."""


@dataclass
class Evaluation:
    """Measures subjects on blocks of images.

    Attributes:
        blocks: the images.
        measures: the networks that judge.
        settings: how it runs.
        work: folder for what is measured so far; all processes must see the same one.
        data: what the images are, beside their names, such as the folder they come from.
        device: where models and networks run.
        say: told of progress, on every rank.
    """

    blocks: ImageBlocks
    measures: Measures
    settings: Settings
    work: Path
    data: str
    device: torch.device
    say: Callable[[str], None] = field(default=lambda text: None)
    _said: set[str] = field(default_factory=set, init=False, repr=False)

    def measure(self, subjects: Sequence[Subject]) -> None:
        """Measures what no earlier run has, and writes it to ``work``; every rank must call it.

        Fixed blocks of consecutive images are dealt to the ranks whole: so what is measured does not depend
        on how many ranks there are.

        Raises:
            MeasuringError: a model makes NaN or images of another size, or cannot take the images; on all
                ranks, whichever has met it.
        """
        originals, shards = self._originals(), [self._shards(subject) for subject in subjects]
        parts = [originals, *shards]
        missing = [number for number in range(len(self.blocks)) if not all(p.has(number) for p in parts)]
        if len(missing) < len(self.blocks):
            self.say(f"going on: {len(self.blocks) - len(missing)} of {len(self.blocks)} blocks are measured")
        distributed.barrier()  # nobody writes before everybody has looked
        own = missing[distributed.rank() :: distributed.world_size()]
        measured = self._measure_in_turn(own, subjects, originals, shards)
        failure: Exception | None = None
        for turn in range(-(-len(missing) // distributed.world_size())):
            try:
                next(measured, None)
            except Exception as error:  # raised again where the ranks meet
                failure = error
            if turn % _ROUNDS_TOGETHER == _ROUNDS_TOGETHER - 1 or distributed.world_size() == 1:
                _raise_together(failure)
        _raise_together(failure)

    def result(self, subject: Subject) -> Assembled:
        """The numbers of a subject that was measured: joined in the order of the images, so the same for
        any number of ranks.

        Raises:
            ValueError: no image could be read.
        """
        own, originals = self._shards(subject), self._originals()
        return assemble(
            ((_present(originals, n), _present(own, n)) for n in range(len(self.blocks))),
            {name: extractor.dimensions for name, extractor in self.measures.features.items()},
            self.work,
        )

    def _measure_in_turn(
        self,
        numbers: Sequence[int],
        subjects: Sequence[Subject],
        originals: Shards,
        shards: Sequence[Shards],
    ) -> Iterator[None]:
        """Measures one of these blocks each time it is asked for the next."""
        progress = Progress(len(subjects) * sum(self._size(number) for number in numbers), self.say)
        for block in block_loader(self.blocks, numbers, self.settings.num_workers):
            try:
                self._measure_originals(block, originals)
                for subject, own in zip(subjects, shards, strict=True):
                    with _said_of(subject):
                        self._measure_block(block, subject, own)
                    progress.add(self._size(block.number))
            except ValueError as error:
                raise MeasuringError(str(error)) from error
            yield

    def _measure_originals(self, block: Block, shards: Shards) -> None:
        """Which images a block holds, and the networks' features of them: from the cache of all evaluations
        where the same images were seen before."""
        for reason in block.unreadable:
            self.say(f"left out: {reason}")
        if shards.has(block.number):
            return
        content = content_sha256(block)
        found = {
            "indices": torch.tensor(block.indices, dtype=torch.int64),
            "content": from_text(content),
            "unreadable": from_text("\n".join(block.unreadable)),
        }
        for name, extractor in self.measures.features.items():
            cache = Shards(reference_cache(), name, extractor.identity)
            cached = cache.load(content)
            if cached is None:
                batch_size = self.settings.batch_size
                cached = {"features": reference_features(block, extractor, self.device, batch_size)}
                self._keep(cache, content, cached)
            found[f"features.{name}"] = cached["features"]
        shards.store(block.number, found)

    def _keep(self, cache: Shards, content: str, features: dict[str, Tensor]) -> None:
        try:
            cache.store(content, features)
        except OSError as error:  # costs the next evaluation time, and this one nothing
            sentence = (
                f"latentae's cache {cache.folder} cannot be written ({error.strerror}), so that the next "
                "evaluation computes its features again: set LATENTAE_CACHE to a folder that can be written"
            )
            if sentence not in self._said:
                self.say(sentence)
            self._said.add(sentence)

    def _measure_block(self, block: Block, subject: Subject, shards: Shards) -> None:
        if shards.has(block.number):
            return
        batch_size = self.settings.batch_size
        if block.images:
            subject.warm_up(to_images(torch.stack(block.images[:1])).to(self.device))
        measured = measure_block(
            subject, block, self.measures, self.device, batch_size=batch_size, drift=self._drift()
        )
        shards.store(block.number, measured)

    def _drift(self) -> Drift | None:
        count = min(self.settings.cycle_images, len(self.blocks.indices))
        if not count or not self.settings.cycle_rounds:
            return None
        total = len(self.blocks.indices)
        chosen = (self.blocks.indices[position * total // count] for position in range(count))
        return Drift(self.settings.cycle_rounds, frozenset(chosen))

    def _size(self, number: int) -> int:
        return min(BLOCK_SIZE, len(self.blocks.indices) - number * BLOCK_SIZE)

    def _originals(self) -> Shards:
        return Shards(self.work, "originals", json.dumps(self._what(), sort_keys=True))

    def _shards(self, subject: Subject) -> Shards:
        drift = [self.settings.cycle_images, *self.settings.cycle_rounds]
        what = {**self._what(), "model": subject.identity, "cycle": drift}
        return Shards(self.work, subject.name, json.dumps(what, sort_keys=True))

    def _what(self) -> dict[str, object]:
        return {
            "version": _VERSION,
            "data": self.data,
            "images": self.blocks.list_sha256,
            "smallest_side": self.blocks.smallest_side,
            "protocol": self.blocks.protocol.describe(),
            "measures": self.measures.identities,
        }


@contextmanager
def _said_of(subject: Subject) -> Iterator[None]:
    """Has every complaint name the model."""
    try:
        yield
    except ValueError as error:
        reason = str(error)
        if not reason.startswith(subject.name):
            raise ValueError(f"{subject.name}: {reason}") from error
        raise


def _raise_together(failure: Exception | None) -> None:
    """Raises on every rank what one of them has met, so that none waits for another that is gone."""
    own = "" if failure is None else " ".join(f"{failure or type(failure).__name__}".split()) + "\n"
    reasons = to_text(distributed.all_gather_concat(from_text(own)).cpu()).splitlines()
    if failure is not None:
        raise failure
    if reasons:
        raise MeasuringError(reasons[0])


def _present(shards: Shards, number: int) -> dict[str, Tensor]:
    shard = shards.load(number)
    if shard is None:
        raise ValueError(
            f"{shards.path(number)} is missing: with several processes all must see the same output folder"
        )
    return shard
