"""How a person watches a run: a bar on a terminal, lines in a log file, nothing from other ranks."""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import Any, Protocol

from tqdm import tqdm

# What the bar has room for, the weightiest first: it is cut at the terminal's edge.
_LABELS = {
    "images_per_second": "img/s",
    "skipped_steps": "skipped",
    "loss": "loss",
    "reconstruction": "rec",
    "perceptual": "lpips",
    "kl": "kl",
    "generator": "gen",
    "discriminator": "disc",
    "adversarial_weight": "adv",
    "codebook_usage": "codes",
    "validation_psnr": "psnr",
}
# Shown only where there is something to tell.
_SILENT_AT_ZERO = ("skipped_steps",)
_REMEMBERED = 20
# A short bar: the numbers behind it say more.
_BAR_FORMAT = "{percentage:3.0f}%|{bar:16}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


class Progress(Protocol):
    """What the recorder needs of a display."""

    def advance(self) -> None:
        """One optimizer step was made."""

    def show(self, step: int, values: dict[str, float]) -> None:
        """Shows what was logged at a step."""

    def say(self, message: str) -> None:
        """Shows a sentence."""

    def close(self) -> None:
        """Ends the display."""


class Pace:
    """Seconds a step takes, from the latest log lines alone: with all that comes between the steps.

    Args:
        step: optimizer steps done before this process began.
    """

    def __init__(self, step: int) -> None:
        self._marks: deque[tuple[int, float]] = deque([(step, time.perf_counter())], maxlen=_REMEMBERED + 1)

    def mark(self, step: int) -> None:
        """Notes that the run is at ``step`` now."""
        self._marks.append((step, time.perf_counter()))

    def seconds_a_step(self) -> float | None:
        """Over the latest marks; None before there are two different ones."""
        (first, began), (last, ended) = self._marks[0], self._marks[-1]
        return (ended - began) / (last - first) if last > first else None


class _PacedBar(tqdm):
    """tqdm whose time left is that of a pace, which one slow step (a checkpoint) does not throw off."""

    pace: Pace | None = None

    @property
    def format_dict(self) -> dict[str, Any]:
        values: dict[str, Any] = super().format_dict
        seconds = None if self.pace is None else self.pace.seconds_a_step()
        return values if seconds is None else {**values, "rate": 1 / seconds}


class ProgressBar:
    """A bar on standard error, with the values shown at its end.

    Args:
        step, max_steps: where the run stands, and where it ends.
    """

    def __init__(self, step: int, max_steps: int) -> None:
        self.bar = _PacedBar(
            total=max_steps, initial=step, bar_format=_BAR_FORMAT, dynamic_ncols=True, mininterval=0.5
        )
        self.bar.pace = Pace(step)

    def advance(self) -> None:
        self.bar.update()

    def show(self, step: int, values: dict[str, float]) -> None:
        assert self.bar.pace is not None
        self.bar.pace.mark(step)
        self.bar.set_postfix({_LABELS[name]: text for name, text in _chosen(values).items()})

    def say(self, message: str) -> None:
        self.bar.write(message)

    def close(self) -> None:
        self.bar.close()


class ProgressLines:
    """A line on standard output for each log line, for output that is a file or a pipe."""

    def __init__(self, step: int, max_steps: int) -> None:
        self.max_steps = max_steps
        self.pace = Pace(step)

    def advance(self) -> None:
        pass

    def show(self, step: int, values: dict[str, float]) -> None:
        self.pace.mark(step)
        parts = [f"step {step}/{self.max_steps}"]
        parts += [f"{name} {text}" for name, text in _chosen(values).items()]
        seconds = self.pace.seconds_a_step()
        if seconds is not None:
            left = tqdm.format_interval((self.max_steps - step) * seconds)
            parts.append(f"{left} left")
        self.say(", ".join(parts))

    def say(self, message: str) -> None:
        # Flushed, so that a log can be followed and stands in order with what goes to standard error.
        sys.stdout.write(f"{message}\n")
        sys.stdout.flush()

    def close(self) -> None:
        pass


class Silence:
    """Shows nothing, for every rank but the first."""

    def advance(self) -> None:
        pass

    def show(self, step: int, values: dict[str, float]) -> None:
        pass

    def say(self, message: str) -> None:
        pass

    def close(self) -> None:
        pass


def create_progress(step: int, max_steps: int, *, enabled: bool) -> Progress:
    """The display that fits where this process writes to; ``enabled`` on one rank only."""
    if not enabled:
        return Silence()
    return (ProgressBar if sys.stderr.isatty() else ProgressLines)(step, max_steps)


def _chosen(values: dict[str, float]) -> dict[str, str]:
    """The values that are shown, by name, with three digits."""
    return {
        name: f"{values[name]:.0f}"
        if name == "images_per_second" and values[name] >= 100
        else f"{values[name]:.3g}"
        for name in _LABELS
        if name in values and not (name in _SILENT_AT_ZERO and not values[name])
    }
