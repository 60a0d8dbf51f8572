"""Refuses updates from losses or gradients that are not finite, counts them and names their causes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latentae import distributed
from latentae.data.names import printable_name

Gather = Callable[[list[Any]], list[Any]]
"""Joins the lists of all ranks into one, the same on each."""

_NAMES_SHOWN = 8


@dataclass(frozen=True)
class SkippedStep:
    """An update that was not made.

    Attributes:
        step: its number, counted from 1.
        causes: the losses and gradient norms that were no finite numbers.
        names: the images of the batch, those of the ranks whose own losses were at fault if there are any.
    """

    step: int
    causes: list[str]
    names: list[str]

    def __str__(self) -> str:
        shown = ", ".join(map(printable_name, self.names[:_NAMES_SHOWN]))
        if len(self.names) > _NAMES_SHOWN:
            shown += f" and {len(self.names) - _NAMES_SHOWN} more"
        return f"step {self.step} skipped: {', '.join(self.causes)} not finite; its images: {shown}"


@dataclass
class _Attempt:
    """One optimizer step since the last report; tensors stay on the device until then."""

    step: int
    labels: list[str]
    names: list[str]
    # How many ranks found each label not finite, whether the scaler overflowed, whether a loss of ours did.
    flags: Tensor


class Guard:
    """Judges every update on the device, alike on all ranks; speaks when ``report`` is called.

    A rank calls ``watch`` for each micro-batch, ``judge`` before the update, ``report`` at log lines. Only
    ``report`` waits for the device.

    Args:
        gather: joins the ranks' lists.
        gradient_losses: names of losses that are made of gradients under the loss scale. Like gradient norms
            they overflow when the scale is too large.

    Attributes:
        skipped: updates not made so far, in the whole run.
        consecutive: how many of the latest were not made, one after the other.
        longest: the longest such row that went on in what the last report covered, with what led there
            before; 0 if all of its updates were made.
    """

    def __init__(self, gather: Gather, gradient_losses: Collection[str] = ()) -> None:
        self.gather = gather
        self.gradient_losses = gradient_losses
        self.skipped = 0
        self.consecutive = 0
        self.longest = 0
        self._losses: dict[str, Tensor] = {}
        self._names: list[str] = []
        self._attempts: list[_Attempt] = []

    @torch.no_grad()
    def watch(self, losses: dict[str, Tensor], names: Sequence[str]) -> None:
        """Takes the losses of a micro-batch, scalars by name, and the names of this rank's images in it."""
        for name, loss in losses.items():
            infinite = ~torch.isfinite(loss)
            self._losses[name] = infinite | self._losses[name] if name in self._losses else infinite
        self._names += names

    @torch.no_grad()
    def judge(self, step: int, norms: dict[str, Tensor], loss_scale: Tensor | None = None) -> Tensor:
        """Whether update ``step`` (counted from 1) may be made: a boolean scalar, the same on every rank.

        Args:
            norms: gradient norms by name, unscaled, from gradients averaged over ranks.
            loss_scale: the gradient scaler's, if there is one. Where gradients, or losses made of gradients,
                overflow under a scale above 1 and all other losses are finite, the scaler lowers its scale:
                such an update is not made either, but it is not a fault.
        """
        infinite = [*self._losses.values(), *(~torch.isfinite(norm) for norm in norms.values())]
        own = torch.stack(infinite).float()
        total = distributed.all_reduce_sum(own)
        # What is not finite on all ranks alike came from one of them by a sum, as the adaptive weight does.
        elsewhere_fine = total < distributed.world_size()
        here = (own * elsewhere_fine)[: len(self._losses)].sum()
        overflow = torch.zeros_like(here)
        if loss_scale is not None:
            counts = zip(self._losses, total, strict=False)  # those of the losses come first
            plain = [count for name, count in counts if name not in self.gradient_losses]
            overflow = (sum(plain, torch.zeros_like(here)) == 0).float() * (loss_scale > 1)
        flags = torch.cat([total, torch.stack([overflow, here])])
        self._attempts.append(_Attempt(step, [*self._losses, *norms], self._names, flags))
        self._losses, self._names = {}, []
        return total.sum() == 0

    def report(self) -> list[SkippedStep]:
        """The updates not made since the last call; every rank must call it."""
        attempts, self._attempts = self._attempts, []
        self.longest = 0
        skipped = []
        for attempt, ranks, overflow, here in _read(attempts):
            if not any(ranks):
                self.consecutive = 0
            elif not overflow:
                self.consecutive += 1
                self.longest = max(self.longest, self.consecutive)
                causes = [label for label, count in zip(attempt.labels, ranks, strict=True) if count]
                skipped.append(SkippedStep(attempt.step, causes, self._images(attempt.names, here > 0)))
        self.skipped += len(skipped)
        return skipped

    def _images(self, names: list[str], here: bool) -> list[str]:
        """The images of the ranks whose own losses were at fault, or of all if only the gradients were."""
        by_rank: list[tuple[bool, list[str]]] = self.gather([(here, names)])
        guilty = [name for fault, theirs in by_rank if fault for name in theirs]
        return guilty or [name for _, theirs in by_rank for name in theirs]

    def state_dict(self) -> dict[str, int]:
        """What a resumed run goes on counting from, with what was judged since the last ``report``."""
        skipped, consecutive = self.skipped, self.consecutive
        for _, ranks, overflow, _ in _read(self._attempts):
            if not any(ranks):
                consecutive = 0
            elif not overflow:
                skipped, consecutive = skipped + 1, consecutive + 1
        return {"skipped": skipped, "consecutive": consecutive}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Takes up a state written by ``state_dict``."""
        self.skipped, self.consecutive = state["skipped"], state["consecutive"]


def _read(attempts: Sequence[_Attempt]) -> Iterator[tuple[_Attempt, list[float], float, float]]:
    """Each attempt with its flags from the device: by label, of the scaler's overflow, of a loss of ours."""
    if not attempts:
        return
    flags = iter(torch.cat([attempt.flags for attempt in attempts]).tolist())
    for attempt in attempts:
        yield attempt, [next(flags) for _ in attempt.labels], next(flags), next(flags)
