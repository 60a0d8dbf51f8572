"""The codebook of a run: starts it from data, counts its codes on every rank, warns if many stay unused."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from latentae import distributed
from latentae.config import RunConfig
from latentae.data import Batch, ImageDataset, ImageStream, epoch_size
from latentae.devices import to_float64_on_cpu
from latentae.models import VQVAE
from latentae.quantizers import (
    Quantizer,
    code_counts,
    codebook_health,
    reachable_usage,
    table_healths,
    usage_deciles,
)

MOST_BATCHES = 16
"""Images of at most this many batches are held at once to start a codebook."""

# Fewer choices per code say little: 1,024 choices miss 37 % of 1,024 equally likely codes, ten times as many
# miss one in 22,000.
_ENOUGH_PER_CODE = 10


@torch.no_grad()
def start_codebook(
    autoencoder: VQVAE,
    batches: Iterator[Batch],
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> Iterator[Batch]:
    """Starts a model's quantizer from the first batches of all ranks; yields these again, then the rest.

    The quantizer says in ``latents_to_start`` how many latents it wants. It gets those of at least one batch
    and at most 16.

    Args:
        autoencoder: on ``device``.
        batches: this rank's, with as many latents in each as on any other rank.
        generator: on the CPU, in the same state on every rank.

    Raises:
        ValueError: latents that are not finite.
    """
    quantizer = autoencoder.quantize
    first = next(batches)
    latents = [autoencoder.encode(first["images"].to(device)).latents]
    in_all = latents[0][:, 0].numel() * distributed.world_size()
    wanted = min(-(-quantizer.latents_to_start // in_all), MOST_BATCHES)
    others = list(itertools.islice(batches, max(wanted - 1, 0)))
    latents += [autoencoder.encode(batch["images"].to(device)).latents for batch in others]
    change = quantizer.start(latents, generator)
    if change is not None:
        autoencoder.move_latents(change)
    return itertools.chain([first, *others], batches)


@dataclass
class CodeUse:
    """Counts how often each code was chosen.

    Attributes:
        counts: [depth, K] int64, over all ranks and micro-batches; depth is 1 for a plain quantizer.
        images: how many images were seen meanwhile, including those of refused steps.
    """

    counts: Tensor
    images: int

    def health_numbers(self) -> dict[str, float | list[float]]:
        """Returns what is logged of an epoch; with several tables also the numbers of each."""
        health, tables = codebook_health(self.counts), table_healths(self.counts)
        numbers: dict[str, float | list[float]] = {
            "epoch_codebook_images": self.images,
            "epoch_codebook_usage": health.usage,
            "epoch_codebook_perplexity": health.perplexity,
        }
        for suffix, table, counts in zip(self.suffixes(), tables, self.counts, strict=True):
            numbers |= {  # with one table, the first two are those above
                f"epoch_codebook_usage{suffix}": table.usage,
                f"epoch_codebook_perplexity{suffix}": table.perplexity,
                f"epoch_codebook_deciles{suffix}": usage_deciles(counts),
            }
        return numbers

    def suffixes(self) -> list[str]:
        """Returns what follows the names of each table's values."""
        return [""] if len(self.counts) == 1 else [f"_{table}" for table in range(len(self.counts))]

    def shares(self) -> Tensor:
        """Returns [depth, K] how often each code was chosen, in multiples of an even share."""
        counts = to_float64_on_cpu(self.counts)
        return counts * counts.shape[1] / counts.sum(dim=1, keepdim=True).clamp(min=1)


@dataclass
class CodebookReport:
    """The codebook's part of a log line.

    Attributes:
        numbers: by the names they are logged under; lists are ``usage_deciles``.
        histograms: if an epoch has ended since the line before: for each table, by name, [K] how often each
            code was chosen, in multiples of an even share.
        warning: a sentence, if there is something to warn of.
    """

    numbers: dict[str, float | list[float]] = field(default_factory=dict)
    histograms: dict[str, Tensor] = field(default_factory=dict)
    warning: str | None = None


def monitor_codebook(
    quantizer: Quantizer | None, config: RunConfig, images: ImageDataset | ImageStream
) -> CodebookMonitor:
    """Returns the monitor of a run that trains on ``images``."""
    return CodebookMonitor(
        quantizer,
        images_per_step=config.batch_size * config.gradient_accumulation_steps * distributed.world_size(),
        epoch_images=epoch_size(images),
        least_usage=config.guard.min_codebook_usage,
    )


class CodebookMonitor:
    """Counts codes since the last log line, and over epochs.

    An epoch is as many optimizer steps as it takes to see all images of the data set. It ends with the step
    that contains its last image; that whole step counts for it. A refused step adds no counts.

    ``add`` and ``after_update`` never wait for the device; ``read`` does. All counts, and whether a warning
    was given, are part of a checkpoint.

    Args:
        quantizer: its indices are counted; None: there are none, and nothing to do.
        images_per_step: images that all ranks together see in an optimizer step.
        epoch_images: images of an epoch.
        least_usage: as in ``UnusedCodesAlarm``.

    Attributes:
        epoch: use in the running epoch so far; None at its start.
        last_epoch: use in the epoch before it; None in the first one.
    """

    def __init__(
        self,
        quantizer: Quantizer | None,
        *,
        images_per_step: int,
        epoch_images: int,
        least_usage: float | None = None,
    ) -> None:
        self.quantizer = quantizer
        self.images_per_step = images_per_step
        self.epoch_images = epoch_images
        self.alarm = None if quantizer is None else UnusedCodesAlarm(quantizer, least_usage)
        self.epoch: CodeUse | None = None
        self.last_epoch: CodeUse | None = None
        self._epoch_is_logged = True  # whether a line was written about the last epoch
        self._since_line: CodeUse | None = None
        self._pending: Tensor | None = None

    @torch.no_grad()
    def add(self, indices: Tensor | None) -> None:
        """Counts a micro-batch's indices [B, h, w] or [B, depth, h, w], pending until ``after_update``."""
        if self.quantizer is None or indices is None:
            return
        counts = code_counts(indices, self.quantizer.num_codes).view(-1, self.quantizer.num_codes)
        self._pending = counts if self._pending is None else self._pending + counts

    @torch.no_grad()
    def after_update(self, step: int, accepted: Tensor | bool = True) -> None:
        """Takes in the pending counts of all ranks; every rank must call it.

        Args:
            step: the optimizer step, counted from 1.
            accepted: whether the step was made, the same on every rank; a boolean scalar on the device, or a
                bool.
        """
        if self._pending is None:
            return
        counts = distributed.all_reduce_sum(self._pending) * accepted
        self._pending = None
        self._since_line = self._joined(self._since_line, counts)
        self.epoch = self._joined(self.epoch, counts)
        seen, before = (number * self.images_per_step // self.epoch_images for number in (step, step - 1))
        if seen > before:
            self.last_epoch, self.epoch, self._epoch_is_logged = self.epoch, None, False

    def _joined(self, use: CodeUse | None, counts: Tensor) -> CodeUse:
        if use is None:
            return CodeUse(counts, self.images_per_step)
        # Counts from a checkpoint are on the CPU.
        return CodeUse(use.counts.to(counts.device) + counts, use.images + self.images_per_step)

    @torch.no_grad()
    def read(self, *, final: bool = False) -> CodebookReport:
        """Reports all codes since the last call, and an epoch that has ended in between.

        Args:
            final: whether this is the run's last line. If no epoch has ended in the whole run, its numbers
                are then those of the part that was seen, and a warning does not wait for more lines.
        """
        report = CodebookReport()
        if self._since_line is not None:
            health = codebook_health(self._since_line.counts)
            report.numbers |= {"codebook_usage": health.usage, "codebook_perplexity": health.perplexity}
            self._since_line = None
        ended = None if self._epoch_is_logged else self.last_epoch
        if ended is None and final and self.last_epoch is None:
            ended = self.epoch
        self._epoch_is_logged = True
        if ended is not None:
            report.numbers |= ended.health_numbers()
            tables = zip(ended.suffixes(), ended.shares(), strict=True)
            report.histograms = {f"code_shares{suffix}": shares for suffix, shares in tables}
        judged = self._use_to_judge()
        if judged is not None and self.alarm is not None:
            report.warning = self.alarm.check(judged.counts, final=final)
        return report

    def shares(self) -> Tensor | None:
        """Returns [depth, K] how often each code was chosen in the last whole epoch, in even shares.

        Before the first epoch has ended, of the running one. None before the first step.
        """
        use = self.last_epoch or self.epoch
        return None if use is None else use.shares()

    def _use_to_judge(self) -> CodeUse | None:
        """Returns the running epoch once it has enough choices, otherwise the last one."""
        if self.epoch is not None:
            choices, codes = int(self.epoch.counts[0].sum()), self.epoch.counts.shape[1]
            if choices >= _ENOUGH_PER_CODE * codes:
                return self.epoch
        return self.last_epoch

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed run continues to count from, the same on every rank."""
        uses = {"epoch": self.epoch, "last_epoch": self.last_epoch, "since_line": self._since_line}
        return {
            **{name: None if use is None else (use.counts.cpu(), use.images) for name, use in uses.items()},
            "told": self._epoch_is_logged,
            "alarm": None if self.alarm is None else (self.alarm.lines, self.alarm.said),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a state that ``state_dict`` returned."""
        if self.quantizer is None or self.alarm is None:
            return
        self._since_line, self.epoch, self.last_epoch = (
            None if state[name] is None else CodeUse(*state[name])
            for name in ("since_line", "epoch", "last_epoch")
        )
        self._epoch_is_logged = state["told"]
        self.alarm.lines, self.alarm.said = state["alarm"]


class UnusedCodesAlarm:
    """Warns once in a run if too few codes are used at several log lines in a row, and suggests remedies.

    A single line is not enough: in its first steps any codebook is used little, since the encoder cannot yet
    tell images apart.

    Args:
        quantizer: for its remedies.
        least_usage: warn below this share of the codes, relative to what equally likely codes would reach in
            as many choices. None: never warn.
        patience: how many lines in a row it takes.

    Attributes:
        lines: the latest lines in a row that were below.
        said: whether the warning was given.
    """

    def __init__(self, quantizer: Quantizer, least_usage: float | None, patience: int = 5) -> None:
        self.quantizer = quantizer
        self.least_usage = least_usage
        self.patience = patience
        self.lines = 0
        self.said = False

    def check(self, counts: Tensor, *, final: bool = False) -> str | None:
        """Takes how often each code was chosen, and returns a warning if it is time for it.

        Args:
            counts: [depth, K], with as many choices in each table.
            final: whether this is the run's last line, which need not be one of several.
        """
        if self.least_usage is None or self.said:
            return None
        tables = table_healths(counts)
        worst = min(range(len(tables)), key=lambda table: tables[table].usage)
        choices = int(counts[0].sum())
        reachable = reachable_usage(self.quantizer.num_codes, choices)
        self.lines = self.lines + 1 if tables[worst].usage < self.least_usage * reachable else 0
        if self.lines < (1 if final else self.patience):
            return None
        self.said = True
        codes = f"{self.quantizer.num_codes:,} codes"
        if self.quantizer.depth is not None:
            codes += f" of table {worst}"
        limit = "" if reachable > 0.995 else f" (at most {reachable:.1%} can be expected)"
        changes = ", ".join(f"model.quantizer.{remedy}" for remedy in self.quantizer.remedies())
        return (
            f"many codes are not used: {choices:,} choices used {tables[worst].usage:.1%} of the {codes}"
            f"{limit}, perplexity {tables[worst].perplexity:.3g}, below "
            f"guard.min_codebook_usage={self.least_usage:g}; in the next run, try one of: {changes}, or a "
            "lower optimizer.learning_rate"
        )
