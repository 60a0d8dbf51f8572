"""Courses of the KL term's weight: from an optimizer step, counted from 0, to a factor in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

KLSchedule = Callable[[int], float]


def constant(step: int) -> float:
    """1 throughout."""
    return 1.0


@dataclass(frozen=True)
class LinearWarmup:
    """A straight line from 0 at step 0 to 1 at ``warmup_steps``, and 1 from there on (arXiv 1511.06349)."""

    warmup_steps: int

    def __call__(self, step: int) -> float:
        return min(1.0, step / self.warmup_steps)


@dataclass(frozen=True)
class Cyclical:
    """β(t) = min(1, τ/R) with τ = (t mod T/M) / (T/M): Fu et al. 2019, arXiv 1903.10145.

    Attributes:
        cycle_steps: length of a cycle, the paper's T/M.
        cycles: M of them, after which the factor stays 1.
        ratio: R in (0, 1], the share of a cycle in which the factor rises.
    """

    cycle_steps: int
    cycles: int = 4
    ratio: float = 0.5

    def __call__(self, step: int) -> float:
        if step >= self.cycles * self.cycle_steps:
            return 1.0
        return min(1.0, step % self.cycle_steps / (self.ratio * self.cycle_steps))


KL_SCHEDULES: dict[str, Callable[..., KLSchedule]] = {"linear": LinearWarmup, "cyclical": Cyclical}
