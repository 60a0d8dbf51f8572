"""Which codes a run uses: counted exactly over epochs, on the device, alike on every rank."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from latentae import distributed
from latentae.config import RunConfig
from latentae.data import ImageDataset, ImageStream, epoch_size
from latentae.devices import to_float64_on_cpu
from latentae.quantizers import Quantizer, code_counts, codebook_health, table_healths, usage_deciles
from latentae.training.codebook_alarm import ENOUGH_PER_CODE, CodebookAlarm


@dataclass
class CodeUse:
    """How often each code was chosen.

    Attributes:
        counts: [depth, K] int64, over all ranks and micro-batches; depth is 1 for a plain quantizer.
        images: how many were seen meanwhile, those of steps that were not made among them.
    """

    counts: Tensor
    images: int


@dataclass
class CodebookReport:
    """What a log line says of the codes.

    Attributes:
        numbers: by the names they are logged under; lists are ``usage_deciles``.
        histograms: of an epoch that has ended since the line before: [K] how often each code of a table was
            chosen, in multiples of an even share, by name; empty if none has.
        warning: a sentence, where there is something to warn of.
    """

    numbers: dict[str, float | list[float]] = field(default_factory=dict)
    histograms: dict[str, Tensor] = field(default_factory=dict)
    warning: str | None = None


def watch_codebook(
    quantizer: Quantizer | None, config: RunConfig, images: ImageDataset | ImageStream
) -> CodebookWatch:
    """The watch of a run that trains on ``images``."""
    return CodebookWatch(
        quantizer,
        images_per_step=config.batch_size * config.gradient_accumulation_steps * distributed.world_size(),
        epoch_images=epoch_size(images),
        least_usage=config.guard.min_codebook_usage,
    )


class CodebookWatch:
    """Counts codes since the last log line, and over epochs.

    An epoch is the optimizer steps in which as many images are seen as the data set has: it ends with the
    step that its last image is in, which counts for it alone. A step that was not made counts for nothing.

    ``add`` and ``commit`` never wait for the device; ``read`` does. All counts, and whether a warning was
    given, are part of a checkpoint.

    Args:
        quantizer: whose indices are counted; None where there is none, and nothing to do.
        images_per_step: images that all ranks together see in an optimizer step.
        epoch_images: images of an epoch.
        least_usage: as in ``CodebookAlarm``.

    Attributes:
        epoch: over the running epoch so far; None at its start.
        last_epoch: over the epoch before it; None in the first one.
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
        self.alarm = None if quantizer is None else CodebookAlarm(quantizer, least_usage)
        self.epoch: CodeUse | None = None
        self.last_epoch: CodeUse | None = None
        self._told = True  # whether a line was written about the last epoch
        self._since_line: CodeUse | None = None
        self._pending: Tensor | None = None

    @torch.no_grad()
    def add(self, indices: Tensor | None) -> None:
        """Takes a micro-batch's indices [B, h, w] or [B, depth, h, w], until ``commit``."""
        if self.quantizer is None or indices is None:
            return
        counts = code_counts(indices, self.quantizer.num_codes).view(-1, self.quantizer.num_codes)
        self._pending = counts if self._pending is None else self._pending + counts

    @torch.no_grad()
    def commit(self, step: int, accepted: Tensor | bool = True) -> None:
        """Takes in what was added since the last call, on all ranks; every rank must call it.

        Args:
            step: the optimizer step, counted from 1.
            accepted: whether it was made, on every rank alike; a boolean scalar on the device, or a bool.
        """
        if self._pending is None:
            return
        counts = distributed.all_reduce_sum(self._pending) * accepted
        self._pending = None
        self._since_line = self._joined(self._since_line, counts)
        self.epoch = self._joined(self.epoch, counts)
        seen, before = (number * self.images_per_step // self.epoch_images for number in (step, step - 1))
        if seen > before:
            self.last_epoch, self.epoch, self._told = self.epoch, None, False

    @torch.no_grad()
    def read(self, *, final: bool = False) -> CodebookReport:
        """What there is to log: of all codes since the last call, and of an epoch that has ended in between.

        Args:
            final: whether this is the run's last line: if no epoch has ended in the whole run, the numbers
                over an epoch are then those of its one part, and a warning need not wait for more lines.
        """
        report = CodebookReport()
        if self._since_line is not None:
            health = codebook_health(self._since_line.counts)
            report.numbers |= {"codebook_usage": health.usage, "codebook_perplexity": health.perplexity}
            self._since_line = None
        ended = self.last_epoch if not self._told else None
        if ended is None and final and self.last_epoch is None:
            ended = self.epoch
        self._told = True
        if ended is not None:
            report.numbers |= _epoch_numbers(ended)
            shares = _even_shares(ended.counts).cpu()
            report.histograms = {
                f"code_shares{name}": own for name, own in zip(_names(ended), shares, strict=True)
            }
        judged = self._to_judge()
        if judged is not None and self.alarm is not None:
            report.warning = self.alarm.see(judged.counts, final=final)
        return report

    def shares(self) -> Tensor | None:
        """[depth, K] how often each code was chosen in the last whole epoch, in multiples of an even share.

        Of the running one before the first has ended; None before the first step.
        """
        use = self.last_epoch or self.epoch
        return None if use is None else _even_shares(use.counts)

    def _to_judge(self) -> CodeUse | None:
        """The running epoch where it tells enough, else the last one."""
        if self.epoch is not None:
            choices, codes = int(self.epoch.counts[0].sum()), self.epoch.counts.shape[1]
            if choices >= ENOUGH_PER_CODE * codes:
                return self.epoch
        return self.last_epoch

    def _joined(self, use: CodeUse | None, counts: Tensor) -> CodeUse:
        if use is None:
            return CodeUse(counts, self.images_per_step)
        # What a checkpoint held lies on the CPU.
        return CodeUse(use.counts.to(counts.device) + counts, use.images + self.images_per_step)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on counting from, the same on every rank."""
        return {
            "epoch": _packed(self.epoch),
            "last_epoch": _packed(self.last_epoch),
            "since_line": _packed(self._since_line),
            "told": self._told,
            "alarm": None if self.alarm is None else (self.alarm.lines, self.alarm.said),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up a state written by ``state_dict``."""
        if self.quantizer is None or self.alarm is None:
            return
        names = ("since_line", "epoch", "last_epoch")
        self._since_line, self.epoch, self.last_epoch = (_unpacked(state[name]) for name in names)
        self._told = state["told"]
        self.alarm.lines, self.alarm.said = state["alarm"]


def _epoch_numbers(use: CodeUse) -> dict[str, float | list[float]]:
    """What is logged of an epoch; of each table, too, where there are several."""
    health, tables = codebook_health(use.counts), table_healths(use.counts)
    numbers: dict[str, float | list[float]] = {
        "epoch_codebook_images": use.images,
        "epoch_codebook_usage": health.usage,
        "epoch_codebook_perplexity": health.perplexity,
    }
    for name, table, counts in zip(_names(use), tables, use.counts, strict=True):
        numbers |= {  # of one table alone the first two are those above
            f"epoch_codebook_usage{name}": table.usage,
            f"epoch_codebook_perplexity{name}": table.perplexity,
            f"epoch_codebook_deciles{name}": usage_deciles(counts),
        }
    return numbers


def _names(use: CodeUse) -> list[str]:
    """What is put behind the names of each table's values."""
    return [""] if len(use.counts) == 1 else [f"_{table}" for table in range(len(use.counts))]


def _even_shares(counts: Tensor) -> Tensor:
    counts = to_float64_on_cpu(counts)
    return counts * counts.shape[1] / counts.sum(dim=1, keepdim=True).clamp(min=1)


def _packed(use: CodeUse | None) -> tuple[Tensor, int] | None:
    return None if use is None else (use.counts.cpu(), use.images)


def _unpacked(packed: tuple[Tensor, int] | None) -> CodeUse | None:
    return None if packed is None else CodeUse(*packed)
