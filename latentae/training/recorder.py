"""Where a run's numbers go: metrics.jsonl, the trackers, and the eyes of whoever watches."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from latentae.training.folder import RunError, RunFolder
from latentae.training.progress import create_progress


class Recorder:
    """Writes on one rank, keeps silent on the others.

    Args:
        folder: the run's folder.
        step, max_steps: where the run stands, and where it ends, in optimizer steps.
        images_per_step: images that all ranks together see in an optimizer step.
        track: hands named numbers, the values behind named histograms, and their step to the trackers.
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
    def aside(self) -> Iterator[None]:
        """Time spent in the body does not count for ``images_per_second``: it is no training."""
        began = time.perf_counter()
        yield
        self.last_time += time.perf_counter() - began

    def write(
        self,
        step: int,
        measurements: Mapping[str, float | list[float]],
        histograms: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Logs the means since the last call, together with the throughput in between.

        Args:
            step: the optimizer steps done.
            measurements: by name; lists are for metrics.jsonl alone.
            histograms: values [N] by name, for the trackers alone.

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
            self.track(
                {name: value for name, value in numbers.items() if name != "step"}, histograms or {}, step
            )
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


_CONTINUE = "the checkpoints are untouched: make room and run the same command again to continue"


@contextmanager
def _writing(place: Path | str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot write {place} ({error.strerror}); {_CONTINUE}") from error


def _rounded(value: float | list[float]) -> float | list[float]:
    """Six significant digits, what is worth reading in a log; integers as they are."""
    if isinstance(value, list):
        return [float(f"{number:.6g}") for number in value]
    return value if isinstance(value, int) else float(f"{value:.6g}")
