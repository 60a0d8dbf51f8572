"""Measures models on blocks of images, in one process or in several.

``Evaluation`` deals blocks to the ranks and stores what ``measure_block`` measures of each.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentae import distributed
from latentae.console import describe_lack_of_memory, is_out_of_memory, progress_bar
from latentae.data.source import spread_evenly
from latentae.evaluation.assembly import (
    Assembled,
    Shards,
    assemble,
    content_sha256,
    from_text,
    reference_cache,
    to_text,
)
from latentae.evaluation.blocks import BLOCK_SIZE, Block, ImageBlocks, block_loader
from latentae.evaluation.features import Measures
from latentae.evaluation.fit import FIT_METRICS, FitMeasured, assemble_fit, measure_fit
from latentae.evaluation.interpolation import SETTINGS, join_latents
from latentae.evaluation.metrics import to_images
from latentae.evaluation.models import NamedModel
from latentae.evaluation.single_block import (
    IFID_NETWORK,
    Drift,
    batches,
    interpolated_features,
    measure_block,
    pixel_values,
    reference_features,
    transparent_values,
)

# To be raised when the content of shards changes its meaning: shards of another version are not read.
_VERSION = 3
# Blocks between two meetings of the ranks. So no rank waits longer than a process group's timeout, and an
# error in one of them stops all.
_ROUNDS_TOGETHER = 8


@dataclass(frozen=True)
class Settings:
    """Settings of an evaluation's run. The first two change its numbers by rounding at most.

    Attributes:
        batch_size: images of one size that go through a model together.
        num_workers: decoding processes per process.
        cycle_images: number of images, evenly spread, that are encoded and decoded repeatedly.
        cycle_rounds: the rounds after which their drift is measured.

    Raises:
        ValueError: a number out of its range.
    """

    batch_size: int = 16
    num_workers: int = 0
    cycle_images: int = 32
    cycle_rounds: tuple[int, ...] = (1, 2, 5, 10)

    def __post_init__(self) -> None:
        for name, lowest in (("batch_size", 1), ("num_workers", 0), ("cycle_images", 0)):
            if getattr(self, name) < lowest:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be {lowest} or more")


class MeasuringError(ValueError):
    """Measuring failed, in this process or in another."""


@dataclass
class Evaluation:
    """Measures models on blocks of images, by the networks of ``measures``, on ``device``.

    Attributes:
        work: folder of the measurements; all processes must see the same one.
        data: identifies the images together with their names, such as the folder they come from.
        say: receives messages, on every rank.
        teacher: one of the models, beside which the others are measured too; see ``measure_fit``.
        alpha: whether images are RGBA, which are measured as composites.
        ifid: whether decoded interpolations of latents are measured.
    """

    blocks: ImageBlocks
    measures: Measures
    settings: Settings
    work: Path
    data: str
    device: torch.device
    say: Callable[[str], None] = field(default=lambda text: None)
    teacher: NamedModel | None = None
    alpha: bool = False
    ifid: bool = False
    _said: set[str] = field(default_factory=set, init=False, repr=False)
    # Model → the latents of the block that is being measured, so that no image is encoded twice.
    _latents: dict[str, list[Tensor]] = field(default_factory=dict, init=False, repr=False)

    def measure(self, models: Sequence[NamedModel]) -> None:
        """Measures the blocks that ``work`` lacks, and writes them there; every rank must call it.

        Whole blocks of consecutive images are dealt to the ranks, so that the numbers do not depend on the
        number of ranks.

        Raises:
            MeasuringError: a model makes NaN or images of another size, or cannot take the images. It is
                raised on all ranks, whichever failed.
        """
        # Find the blocks that are missing.
        originals, shards = self._originals(), [self._shards(model) for model in models]
        students = [model for model in models if self.teacher is not None and model is not self.teacher]
        fits = [(model, self._fit_shards(model)) for model in students]
        parts = [originals, *shards, *(own for _, own in fits)]
        missing = [number for number in range(len(self.blocks)) if not all(p.has(number) for p in parts)]
        if len(missing) < len(self.blocks):
            self.say(f"going on: {len(self.blocks) - len(missing)} of {len(self.blocks)} blocks are measured")
        distributed.barrier()  # no rank writes before all have looked

        # Measure this rank's share, and then what needs the latents of all images.
        own = _share(missing)
        self._together(self._measure_in_turn(own, models, originals, shards, fits), len(missing))
        if self.ifid:
            for model in models:
                between = self._between_shards(model)
                missing = [number for number in range(len(self.blocks)) if not between.has(number)]
                distributed.barrier()
                self._together(self._interpolate(_share(missing), model, between), len(missing))

    def _together(self, measured: Iterator[None], blocks: int) -> None:
        """Measures this rank's share of ``blocks``, and meets the other ranks every few blocks."""
        failure: Exception | None = None
        for turn in range(-(-blocks // distributed.world_size())):
            try:
                next(measured, None)
            except Exception as error:  # raised where the ranks meet
                failure = error
            if turn % _ROUNDS_TOGETHER == _ROUNDS_TOGETHER - 1 or distributed.world_size() == 1:
                _raise_together(failure)
        _raise_together(failure)

    def result(self, model: NamedModel) -> Assembled:
        """Returns the numbers of a measured model, which are the same for any number of ranks.

        Raises:
            ValueError: no image could be read.
        """
        own, originals = self._shards(model), self._originals()
        return assemble(
            ((_present(originals, n), _present(own, n)) for n in range(len(self.blocks))),
            {name: extractor.dimensions for name, extractor in self.measures.features.items()},
            self.work,
            self._interpolated_features(model) if self.ifid else None,
        )

    def fit_result(self, model: NamedModel) -> FitMeasured:
        """Returns what was measured of a model beside the teacher, the same for any number of ranks."""
        own = self._fit_shards(model)
        return assemble_fit(_present(own, number) for number in range(len(self.blocks)))

    def _measure_in_turn(
        self,
        numbers: Sequence[int],
        models: Sequence[NamedModel],
        originals: Shards,
        shards: Sequence[Shards],
        fits: Sequence[tuple[NamedModel, Shards]],
    ) -> Iterator[None]:
        """Measures the next of these blocks each time it is advanced."""
        total = (len(models) + 2 * len(fits)) * sum(self._size(number) for number in numbers)
        with progress_bar(total, "reconstructions measured", self.say) as bar:
            for block in block_loader(self.blocks, numbers, self.settings.num_workers):
                try:
                    self._measure_originals(block, originals)
                    for model, own in zip(models, shards, strict=True):
                        with _errors_name(model):
                            self._measure_block(block, model, own)
                        bar.update(self._size(block.number))
                    for model, own in fits:
                        with _errors_name(model):
                            self._measure_fit(block, model, own)
                        bar.update(2 * self._size(block.number))
                except ValueError as error:
                    raise MeasuringError(str(error)) from error
                self._latents.clear()
                yield

    def _interpolate(self, numbers: Sequence[int], model: NamedModel, between: Shards) -> Iterator[None]:
        """Measures images between latents, for the next of these blocks each time it is advanced."""
        own = self._shards(model)
        originals = self._originals()
        counts = [len(_present(originals, number)["indices"]) for number in range(len(self.blocks))]
        table = join_latents((_present(own, number) for number in range(len(self.blocks))), sum(counts))
        if table is None:  # which the result says
            return
        say = self.say if numbers else lambda text: None
        with progress_bar(sum(counts[number] for number in numbers), "interpolations measured", say) as bar:
            for number in numbers:
                start = sum(counts[:number])
                latents = table.interpolated(range(start, start + counts[number]))
                height, width = _present(own, number)["size"].tolist() if len(latents) else (1, 1)
                try:
                    with _errors_name(model):
                        between.store(
                            number,
                            interpolated_features(
                                model,
                                latents,
                                (height, width),
                                self.measures.features[IFID_NETWORK],
                                self.device,
                                self.settings.batch_size,
                            ),
                        )
                except ValueError as error:
                    raise MeasuringError(str(error)) from error
                bar.update(counts[number])
                yield

    def _interpolated_features(self, model: NamedModel) -> Iterator[Tensor | None]:
        """Yields the features of each block; None where there are no latents to interpolate."""
        between = self._between_shards(model)
        for number in range(len(self.blocks)):
            shard = between.load(number)
            yield None if shard is None else shard["features"]

    def _measure_originals(self, block: Block, shards: Shards) -> None:
        """Stores which images a block holds, and the networks' features of them.

        Features of images that an earlier evaluation has seen come from the cache that evaluations share.
        """
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
            identity = f"{extractor.identity} of composites" if self.alpha else extractor.identity
            cache = Shards(reference_cache(), name, identity)
            cached = cache.load(content)
            if cached is None:
                batch_size = self.settings.batch_size
                features = reference_features(block, extractor, self.device, batch_size, alpha=self.alpha)
                cached = {"features": features}
                self._store_in_cache(cache, content, cached)
            found[f"features.{name}"] = cached["features"]
        shards.store(block.number, found)

    def _store_in_cache(self, cache: Shards, content: str, features: dict[str, Tensor]) -> None:
        try:
            cache.store(content, features)
        except OSError as error:  # this evaluation loses nothing, the next one time
            sentence = (
                f"cannot write latentae's cache {cache.folder} ({error.strerror}), so the next evaluation "
                "computes its features again: set LATENTAE_CACHE to a folder that can be written"
            )
            if sentence not in self._said:
                self.say(sentence)
            self._said.add(sentence)

    def _measure_block(self, block: Block, model: NamedModel, shards: Shards) -> None:
        if shards.has(block.number):
            return
        if block.images:
            model.warm_up(to_images(torch.stack(block.images[:1])).to(self.device))
        options: Any = {
            "batch_size": self.settings.batch_size,
            "drift": self._drift(),
            "alpha": self.alpha,
            "with_latents": self.ifid,
        }
        if self.teacher is not None:
            options["keep"] = self._latents[model.name] = []
        shards.store(block.number, measure_block(model, block, self.measures, self.device, **options))

    def _measure_fit(self, block: Block, model: NamedModel, shards: Shards) -> None:
        if shards.has(block.number):
            return
        assert self.teacher is not None  # else no model has such shards
        for each in (self.teacher, model):
            if each.name not in self._latents:  # this block of it was measured before an interruption
                self._latents[each.name] = [each.encode(images) for images in self._images(block)]
        latents = (self._latents[model.name], self._latents[self.teacher.name])
        cheap = Measures({name: net for name, net in self.measures.lpips.items() if name in FIT_METRICS})
        compare = partial(transparent_values if self.alpha else pixel_values, measures=cheap)
        shards.store(block.number, measure_fit(model, self.teacher, self._images(block), latents, compare))

    def _images(self, block: Block) -> Iterator[Tensor]:
        for _, batch in batches(block, self.settings.batch_size):
            yield to_images(batch.to(self.device))

    def _drift(self) -> Drift | None:
        indices = self.blocks.indices
        chosen = spread_evenly(self.settings.cycle_images, len(indices))
        if not chosen or not self.settings.cycle_rounds:
            return None
        return Drift(self.settings.cycle_rounds, frozenset(indices[position] for position in chosen))

    def _size(self, number: int) -> int:
        return min(BLOCK_SIZE, len(self.blocks.indices) - number * BLOCK_SIZE)

    def _originals(self) -> Shards:
        return Shards(self.work, "originals", json.dumps(self._fingerprint(), sort_keys=True))

    def _shards(self, model: NamedModel) -> Shards:
        drift = [self.settings.cycle_images, *self.settings.cycle_rounds]
        fingerprint = {**self._fingerprint(), "model": model.identity, "cycle": drift}
        return Shards(self.work, model.name, json.dumps(fingerprint, sort_keys=True))

    def _between_shards(self, model: NamedModel) -> Shards:
        fingerprint = {**self._fingerprint(), "model": model.identity, "between": SETTINGS}
        return Shards(self.work, f"{model.name}.between", json.dumps(fingerprint, sort_keys=True))

    def _fit_shards(self, model: NamedModel) -> Shards:
        assert self.teacher is not None
        fingerprint = {**self._fingerprint(), "model": model.identity, "teacher": self.teacher.identity}
        name = f"{model.name}.beside.{self.teacher.name}"
        return Shards(self.work, name, json.dumps(fingerprint, sort_keys=True))

    def _fingerprint(self) -> dict[str, object]:
        return {
            "version": _VERSION,
            "data": self.data,
            "images": self.blocks.list_sha256,
            "smallest_side": self.blocks.smallest_side,
            "protocol": self.blocks.protocol.describe(),
            "measures": self.measures.identities,
            # These appear only if given, so that older measurements without them stay valid.
            **({"alpha": True} if self.alpha else {}),
            **({"resized_by_alpha": True} if self.blocks.alpha else {}),  # older ones with alpha are not
            **({"fixed_side": self.blocks.fixed_side} if self.blocks.fixed_side else {}),
            **({"ifid": True} if self.ifid else {}),
        }


def _share(numbers: Sequence[int]) -> Sequence[int]:
    """Returns those of these blocks that this rank measures."""
    return numbers[distributed.rank() :: distributed.world_size()]


@contextmanager
def _errors_name(model: NamedModel) -> Iterator[None]:
    """Puts the model's name before the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        reason = str(error)
        if not reason.startswith(model.name):
            raise ValueError(f"{model.name}: {reason}") from error
        raise


def _raise_together(failure: Exception | None) -> None:
    """Raises on every rank the error of one of them, so that none waits for a rank that has stopped."""
    own = "" if failure is None else " ".join(_reason(failure).split()) + "\n"
    reasons = to_text(distributed.all_gather_concat(from_text(own)).cpu()).splitlines()
    if failure is not None:
        raise failure
    if reasons:
        raise MeasuringError(reasons[0])


def _reason(failure: Exception) -> str:
    if is_out_of_memory(failure):
        return f"another process has stopped: {describe_lack_of_memory(failure)}"
    return str(failure) or type(failure).__name__


def _present(shards: Shards, number: int) -> dict[str, Tensor]:
    shard = shards.load(number)
    if shard is None:
        raise ValueError(
            f"{shards.path(number)} is missing: with several processes all must see the same output folder"
        )
    return shard
