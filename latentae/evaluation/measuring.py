"""Measures models on blocks of images, in one process or in several.

``Evaluation`` deals blocks to the ranks and stores what is measured; ``measure_block`` measures one model on
one block.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentae import distributed
from latentae.console import progress_bar
from latentae.devices import to_float64_on_cpu
from latentae.evaluation.assembly import (
    Assembled,
    Shards,
    assemble,
    content_sha256,
    from_text,
    reference_cache,
    to_text,
)
from latentae.evaluation.blocks import BLOCK_SIZE, Block, ImageBlocks, block_loader, spread_evenly
from latentae.evaluation.features import FeatureExtractor, Measures, to_rgb
from latentae.evaluation.fit import FIT_METRICS, FitMeasured, assemble_fit, measure_fit
from latentae.evaluation.metrics import (
    cycle_drift,
    downscaled_psnr,
    l1,
    psnr,
    ssim,
    ssim_and_ms_ssim,
    to_images,
    to_uint8,
)
from latentae.evaluation.models import NamedModel
from latentae.evaluation.rate import CodeMeter, LatentMoments, kl_bits_per_pixel
from latentae.evaluation.transparency import composite_psnr, composites, over_backgrounds, transparent_psnr

# To be raised when the content of shards changes its meaning: shards of another version are not read.
_VERSION = 2
# Blocks between two meetings of the ranks. So no rank waits longer than a process group's timeout, and an
# error in one of them stops all.
_ROUNDS_TOGETHER = 8
# Pixels per side that a metric needs.
_SSIM_MINIMUM, _MS_SSIM_MINIMUM = 11, 176
_LPIPS_MINIMUM = {"alex": 31, "vgg": 16}


@dataclass(frozen=True)
class Settings:
    """How an evaluation runs; the first two change its numbers by rounding at most.

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

        # Measure this rank's share, and meet the other ranks every few blocks.
        own = missing[distributed.rank() :: distributed.world_size()]
        measured = self._measure_in_turn(own, models, originals, shards, fits)
        failure: Exception | None = None
        for turn in range(-(-len(missing) // distributed.world_size())):
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
        compare = partial(_transparent_values if self.alpha else _pixel_values, measures=cheap)
        shards.store(block.number, measure_fit(model, self.teacher, self._images(block), latents, compare))

    def _images(self, block: Block) -> Iterator[Tensor]:
        for _, batch in _batches(block, self.settings.batch_size):
            yield to_images(batch.to(self.device))

    def _drift(self) -> Drift | None:
        indices = self.blocks.indices
        chosen = spread_evenly(min(self.settings.cycle_images, len(indices)), len(indices))
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
            # It appears only if given, so that older measurements stay valid.
            **({"alpha": True} if self.alpha else {}),
        }


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


@dataclass(frozen=True)
class Drift:
    """The rounds (1 or more, rising) after which some images, by their indices in the data, are measured."""

    rounds: Sequence[int]
    indices: frozenset[int]


def measure_block(
    model: NamedModel,
    block: Block,
    measures: Measures,
    device: torch.device,
    *,
    batch_size: int = 16,
    drift: Drift | None = None,
    keep: list[Tensor] | None = None,
    alpha: bool = False,
) -> dict[str, Tensor]:
    """Measures a model on a block of images.

    A value is NaN where the image is too small for the metric, or the metric was not asked for.

    Args:
        batch_size: images of one size that go through the model together.
        drift: the images whose drift is measured; None measures none.
        keep: receives the unscaled latents [b, c, h, w] of each batch.
        alpha: whether images are RGBA, which are measured as composites.

    Returns:
        a shard: float64 values [n] as ``value.METRIC``, features [n, d] as ``features.NETWORK``, the states
        of ``LatentMoments`` and ``CodeMeter`` as ``moments.*`` and ``codes.*``, and the model's ``seconds``.

    Raises:
        ValueError: the model makes images of another size, or NaN.
    """
    rows: dict[str, list[Tensor]] = {}
    moments: LatentMoments | None = None
    codes: CodeMeter | None = None
    seconds = 0.0
    for indices, batch in _batches(block, batch_size):
        # Reconstruct.
        images = to_images(batch.to(device))
        started = _now(device)
        output = model(images)
        seconds += _now(device) - started

        # One value per image and metric, and the features.
        pixels = to_uint8(output.sample)
        compare = _transparent_values if alpha else _pixel_values
        values = compare(to_images(pixels), images, measures)
        if model.upscale > 1:
            values["psnr_downscaled"] = downscaled_psnr(output.sample, images, model.upscale)
        if output.mean is not None:
            values["kl_bits_per_pixel"] = kl_bits_per_pixel(
                output.mean, output.log_variance, *images.shape[2:]
            )
        if drift is not None:
            measure = composite_psnr if alpha else psnr
            values |= _drift(drift, indices, model, images, output.sample, measure)
        for name, value in values.items():
            rows.setdefault(f"value.{name}", []).append(to_float64_on_cpu(value))
        shown = over_backgrounds(pixels, images) if alpha else pixels
        for name, extractor in measures.features.items():
            rows.setdefault(f"features.{name}", []).append(_features(extractor, shown))

        # The sums over latents and codes.
        if output.latents is not None:
            moments = moments or LatentMoments(output.latents.shape[1])
            moments.add(output.latents.float())
            if keep is not None:
                keep.append(output.latents)
        if output.indices is not None and model.num_codes is not None:
            depth = 1 if output.indices.ndim == 3 else output.indices.shape[1]
            codes = codes or CodeMeter(model.num_codes, depth)
            codes.add(output.indices, *images.shape[2:])

    shard = {name: torch.cat(parts) for name, parts in rows.items()}
    for name, sums in (("moments", moments), ("codes", codes)):
        if sums is not None:
            shard |= {f"{name}.{key}": value for key, value in sums.state().items()}
    return {**shard, "seconds": torch.tensor(seconds, dtype=torch.float64)}


def reference_features(
    block: Block,
    extractor: FeatureExtractor,
    device: torch.device,
    batch_size: int = 16,
    *,
    alpha: bool = False,
) -> Tensor:
    """Returns features [n, d] of the originals of a block, of RGBA images with ``alpha`` over backgrounds."""
    batches = (pixels.to(device) for _, pixels in _batches(block, batch_size))
    if alpha:
        batches = (over_backgrounds(pixels, to_images(pixels)) for pixels in batches)
    parts = [_features(extractor, pixels) for pixels in batches]
    return torch.cat([*parts, torch.zeros(0, extractor.dimensions)])


def _pixel_values(reconstructions: Tensor, images: Tensor, measures: Measures) -> dict[str, Tensor]:
    """Returns metric → [B] of the metrics that compare each reconstruction with its image."""
    side = min(images.shape[2:])
    rows = {"psnr": psnr(reconstructions, images), "l1": l1(reconstructions, images)}
    if side >= _MS_SSIM_MINIMUM:
        rows["ssim"], rows["ms_ssim"] = ssim_and_ms_ssim(reconstructions, images)
    else:
        large_enough = side >= _SSIM_MINIMUM
        rows["ssim"] = ssim(reconstructions, images) if large_enough else _missing(len(images))
        rows["ms_ssim"] = _missing(len(images))
    for name, distance in measures.lpips.items():
        large_enough = side >= _LPIPS_MINIMUM[distance.net]
        with torch.no_grad():
            rows[name] = distance(reconstructions, images) if large_enough else _missing(len(images))
    return rows


def _transparent_values(reconstructions: Tensor, images: Tensor, measures: Measures) -> dict[str, Tensor]:
    """Returns the means of the metrics over the composites on black and on white, and PSNRs of their own."""
    black, white = (_pixel_values(*pair, measures) for pair in composites(reconstructions, images))
    means = {name: (value + white[name]) / 2 for name, value in black.items()}
    return means | transparent_psnr(reconstructions, images)


def _features(extractor: FeatureExtractor, pixels: Tensor) -> Tensor:
    """Returns features [B, d] on the CPU; NaN for images that are too small for the network."""
    if min(pixels.shape[2:]) < extractor.smallest_side:
        return torch.full((len(pixels), extractor.dimensions), float("nan"))
    return extractor(to_rgb(pixels)).cpu()


def _drift(
    drift: Drift,
    indices: Sequence[int],
    model: NamedModel,
    images: Tensor,
    first: Tensor,
    measure: Callable[[Tensor, Tensor], Tensor],
) -> dict[str, Tensor]:
    """Returns ``cycle_psnr_ROUNDS`` → [B]; NaN for images whose drift is not measured."""
    rows = {f"cycle_psnr_{rounds}": _missing(len(images)) for rounds in drift.rounds}
    chosen = [position for position, index in enumerate(indices) if index in drift.indices]
    if chosen:
        found = cycle_drift(
            lambda x: model(x).sample, images[chosen], drift.rounds, first=first[chosen], measure=measure
        )
        for rounds, ratios in found.items():
            rows[f"cycle_psnr_{rounds}"][chosen] = ratios.cpu()
    return rows


def _batches(block: Block, batch_size: int) -> Iterator[tuple[list[int], Tensor]]:
    """Yields indices and images [B, C, H, W] uint8 of neighbours of one size, in the block's order."""
    pairs = zip(block.indices, block.images, strict=True)
    for _, group in itertools.groupby(pairs, key=lambda pair: pair[1].shape):
        alike = list(group)
        for start in range(0, len(alike), batch_size):
            indices, images = zip(*alike[start : start + batch_size], strict=True)
            yield list(indices), torch.stack(images)


def _missing(count: int) -> Tensor:
    return torch.full((count,), float("nan"), dtype=torch.float64)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
