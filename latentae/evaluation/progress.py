"""How far an evaluation is, said now and then."""

from __future__ import annotations

import time
from collections.abc import Callable


class Progress:
    """Says how many images are done, how fast it goes and how long it will take, at most so often.

    Args:
        total: reconstructions that this process will measure: an image counts once for each model.
        say: told a line.
        every: seconds between two lines; the end is always said.
        now: a clock in seconds.
        what: is done.
    """

    def __init__(
        self,
        total: int,
        say: Callable[[str], None],
        every: float = 10.0,
        now: Callable[[], float] = time.monotonic,
        what: str = "reconstructions measured",
    ) -> None:
        self.total = total
        self.done = 0
        self._say = say
        self._every = every
        self._now = now
        self._what = what
        self._started = self._said = now()

    def add(self, count: int) -> None:
        """So many more are done."""
        self.done += count
        moment = self._now()
        if self.done < self.total and moment - self._said < self._every:
            return
        self._said = moment
        rate = self.done / max(moment - self._started, 1e-9)
        left = (self.total - self.done) / rate if self.done else 0.0
        rest = f", {duration(left)} left" if self.done < self.total else ""
        self._say(f"{self.done} of {self.total} {self._what}, {rate:.1f} a second{rest}")


def duration(seconds: float) -> str:
    """``45 s``, ``12 min`` or ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
