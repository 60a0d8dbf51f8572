"""A run's numbers: averaged on the device, written to metrics.jsonl and the trackers, shown to a person."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from latentae import distributed
from latentae.devices import has_float64
from latentae.training.run_folder import RunError, RunFolder

# What the bar has room for, the most important first: it is cut at the terminal's edge.
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
_HIDDEN_AT_ZERO = ("skipped_steps",)
_PACE_LINES = 20
# A short bar: the numbers behind it say more.
_BAR_FORMAT = "{percentage:3.0f}%|{bar:16}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
_CONTINUE = "the checkpoints are untouched: make room and run the same command again to continue"


class Meter:
    """Means of named scalars over a logging interval.

    ``add`` and ``after_update`` never wait for the device; ``read`` does so once, after one sum over the
    ranks. What came since the last ``read`` is part of a checkpoint, so the first line of a resumed run
    covers as many steps as any other.
    """

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._pending: list[dict[str, Tensor]] = []
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}
        self._device = torch.device("cpu")

    def add(self, scalars: dict[str, Tensor]) -> None:
        """Takes the scalars of one micro-batch; they are pending until ``after_update``."""
        self._pending.append({name: value.detach().clone() for name, value in scalars.items()})

    @torch.no_grad()
    def after_update(self, accepted: Tensor | bool = True) -> None:
        """Takes in the pending scalars, or drops them if the update was refused."""
        for scalars in self._pending:
            for name, value in scalars.items():
                accepted = torch.as_tensor(accepted, device=value.device)
                nothing = torch.zeros_like(value)
                # Sums from a checkpoint are on the CPU.
                total, count = (of.get(name, nothing).to(value) for of in (self._sums, self._counts))
                self._sums[name] = total + torch.where(accepted, value, nothing)
                self._counts[name] = count + accepted.to(value)
                self._device = value.device
        self._pending.clear()

    def read(self) -> dict[str, float]:
        """Returns the means over steps and ranks since the last call; every rank must call it.

        Scalars without an accepted step are left out.
        """
        names = sorted(self._sums)
        result: dict[str, float] = {}
        if names:
            sums, counts = distributed.all_reduce_sum(self._table(names)).unbind(dim=1)
            means = zip(names, (sums / counts).tolist(), counts.tolist(), strict=True)
            result = {name: mean for name, mean, count in means if count}
        self._clear()
        return result

    def state_dict(self) -> dict[str, Any]:
        """Returns the sums and counts of each rank since the last ``read``; every rank must call it."""
        names = sorted(self._sums)
        if not names:
            return {"names": [], "ranks": None}
        return {"names": names, "ranks": distributed.all_gather_concat(self._table(names)[None]).cpu()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores this rank's part of a state; all of it on rank 0 if the number of ranks has changed."""
        self._clear()
        ranks = state["ranks"]
        if ranks is None:
            return
        if len(ranks) == distributed.world_size():
            own = ranks[distributed.rank()]
        else:
            own = ranks.sum(dim=0) * distributed.is_main()
        for name, (total, count) in zip(state["names"], own, strict=True):
            self._sums[name], self._counts[name] = total, count

    def _table(self, names: list[str]) -> Tensor:
        """Returns [names, 2] sums and counts in float64, on the device if it supports that."""
        device = self._device if has_float64(self._device) else torch.device("cpu")
        pairs = [torch.stack([self._sums[name], self._counts[name]]) for name in names]
        return torch.stack([pair.to(device).double() for pair in pairs])


class Recorder:
    """Writes the log and shows it to whoever watches; does nothing on all ranks but one.

    Args:
        folder: the run's folder.
        step, max_steps: where the run stands, and where it ends, in optimizer steps.
        images_per_step: images that all ranks together see in an optimizer step.
        track: passes named numbers, the values behind named histograms, and their step to the trackers.
        enabled: whether this is the rank that writes.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        step: int,
        max_steps: int,
        images_per_step: int,
        track: Callable[[dict[str, float], Mapping[str, Tensor], int], None],
        enabled: bool,
    ) -> None:
        self.folder = folder
        self.images_per_step = images_per_step
        self.track = track
        self.enabled = enabled
        self.progress = create_progress(step, max_steps, enabled=enabled)
        self.last_step = step
        self.last_time = time.perf_counter()

    def advance(self) -> None:
        """Notes that a step was made."""
        self.progress.advance()

    @contextmanager
    def untimed(self) -> Iterator[None]:
        """Context whose time does not count for ``images_per_second``, since it is not training."""
        began = time.perf_counter()
        yield
        self.last_time += time.perf_counter() - began

    def write(
        self,
        step: int,
        measurements: Mapping[str, float | list[float]],
        histograms: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Logs measurements, and the throughput since the last call.

        Args:
            step: the optimizer steps done.
            measurements: by name; lists go to metrics.jsonl only.
            histograms: values [N] by name, for the trackers only.

        Raises:
            RunError: metrics.jsonl or standard output cannot be written.
        """
        now = time.perf_counter()
        speed = (step - self.last_step) * self.images_per_step / (now - self.last_time)
        self.last_step, self.last_time = step, now
        if not self.enabled:
            return
        line: dict[str, float | list[float]] = {"step": step, "images_per_second": speed, **measurements}
        numbers = {name: value for name, value in line.items() if not isinstance(value, list)}
        with _writing(self.folder.metrics):
            with self.folder.metrics.open("a") as file:
                file.write(json.dumps({name: _rounded(value) for name, value in line.items()}) + "\n")
            tracked = {name: value for name, value in numbers.items() if name != "step"}
            self.track(tracked, histograms or {}, step)
        with _writing("standard output"):
            self.progress.show(step, numbers)

    def say(self, message: str | None) -> None:
        """Shows a sentence, above the bar if there is one; None: there is none.

        Raises:
            RunError: standard output is a file on a full disk.
        """
        if message is not None:
            with _writing("standard output"):
                self.progress.say(message)

    def close(self) -> None:
        """Ends the display."""
        self.progress.close()


@contextmanager
def _writing(place: Path | str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot write {place} ({error.strerror}); {_CONTINUE}") from error


def _rounded(value: float | list[float]) -> float | list[float]:
    """Rounds to six significant digits; integers stay as they are."""
    if isinstance(value, list):
        return [float(f"{number:.6g}") for number in value]
    return value if isinstance(value, int) else float(f"{value:.6g}")


class Progress:
    """A display that shows nothing, for all ranks but the first; also the interface of the others."""

    def advance(self) -> None:
        """One optimizer step was made."""

    def show(self, step: int, values: dict[str, float]) -> None:
        """Shows what was logged at a step."""

    def say(self, message: str) -> None:
        """Shows a sentence."""

    def close(self) -> None:
        """Ends the display."""


class ProgressBar(Progress):
    """A bar on standard error, with the values at its end.

    Args:
        step, max_steps: where the run stands, and where it ends.
    """

    def __init__(self, step: int, max_steps: int) -> None:
        self.bar = _PacedBar(
            total=max_steps, initial=step, bar_format=_BAR_FORMAT, dynamic_ncols=True, mininterval=0.5
        )
        self.pace = self.bar.pace = Pace(step)

    def advance(self) -> None:
        self.bar.update()

    def show(self, step: int, values: dict[str, float]) -> None:
        self.pace.mark(step)
        self.bar.set_postfix({_LABELS[name]: text for name, text in _shown(values).items()})

    def say(self, message: str) -> None:
        self.bar.write(message)

    def close(self) -> None:
        self.bar.close()


class ProgressLines(Progress):
    """A line on standard output for each log line, if the output is a file or a pipe."""

    def __init__(self, step: int, max_steps: int) -> None:
        self.max_steps = max_steps
        self.pace = Pace(step)

    def show(self, step: int, values: dict[str, float]) -> None:
        self.pace.mark(step)
        parts = [f"step {step}/{self.max_steps}"]
        parts += [f"{name} {text}" for name, text in _shown(values).items()]
        seconds = self.pace.seconds_per_step()
        if seconds is not None:
            parts.append(f"{tqdm.format_interval((self.max_steps - step) * seconds)} left")
        self.say(", ".join(parts))

    def say(self, message: str) -> None:
        # Flushed, so that a log can be followed and is in order with what goes to standard error.
        sys.stdout.write(f"{message}\n")
        sys.stdout.flush()


def create_progress(step: int, max_steps: int, *, enabled: bool) -> Progress:
    """Returns the display that fits where this process writes to; ``enabled`` on one rank only."""
    if not enabled:
        return Progress()
    return (ProgressBar if sys.stderr.isatty() else ProgressLines)(step, max_steps)


class Pace:
    """Seconds per step over the latest log lines, including everything between the steps.

    Args:
        step: optimizer steps done before this process began.
    """

    def __init__(self, step: int) -> None:
        self._marks: deque[tuple[int, float]] = deque([(step, time.perf_counter())], maxlen=_PACE_LINES + 1)

    def mark(self, step: int) -> None:
        """Notes that the run is at ``step`` now."""
        self._marks.append((step, time.perf_counter()))

    def seconds_per_step(self) -> float | None:
        """Returns the mean over the latest marks; None before there are two different ones."""
        (first, began), (last, ended) = self._marks[0], self._marks[-1]
        return (ended - began) / (last - first) if last > first else None


class _PacedBar(tqdm):
    """tqdm with the time left by a pace, which one slow step, such as a checkpoint, does not upset."""

    pace: Pace | None = None

    @property
    def format_dict(self) -> dict[str, Any]:
        values: dict[str, Any] = super().format_dict
        seconds = None if self.pace is None else self.pace.seconds_per_step()
        return values if seconds is None else {**values, "rate": 1 / seconds}


def _shown(values: dict[str, float]) -> dict[str, str]:
    """Returns the values to show, by name, with three digits."""
    return {
        name: f"{values[name]:.0f}"
        if name == "images_per_second" and values[name] >= 100
        else f"{values[name]:.3g}"
        for name in _LABELS
        if name in values and not (name in _HIDDEN_AT_ZERO and not values[name])
    }
