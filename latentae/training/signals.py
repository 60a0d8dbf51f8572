"""Signals that ask a run to save and leave, obeyed by all ranks after the same step."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from latentae import distributed

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""What Slurm, Kubernetes, `kill` and Ctrl-C send to whom they will soon end by force."""

# Both launchers set these for the processes they start, and pass on signals that may have come here already.
_LAUNCHERS = ("TORCHELASTIC_RUN_ID", "ACCELERATE_DYNAMO_BACKEND")
_ECHO_SECONDS = 3.0


class RunStopped(BaseException):
    """A run has left because it was asked to; the message says where it stands and how to continue.

    Like KeyboardInterrupt it is no error, and no handler of errors catches it.
    """


class StopSignals:
    """Context in which a stop signal is noted and waits for the end of the step; a second one ends at once.

    A signal that this process was told to ignore (such as by ``nohup`` or a shell's ``&``) stays ignored, and
    outside of the main thread, where Python allows no handlers, all are left alone. Under a launcher the same
    signal often comes twice, from whoever sent it and from the launcher that passes it on: there only one
    that comes 3 s after the first counts as the second. The end of the launcher counts as SIGHUP, since a run
    that outlived it would meet the one that is started next.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._first = 0.0
        self._launched = any(name in os.environ for name in _LAUNCHERS)
        self._parent = os.getppid()
        self._process = os.getpid()
        self._before: dict[signal.Signals, Any] = {}
        self._sentence: str | None = None
        self._vote: _Vote | None = None

    def __enter__(self) -> StopSignals:
        if distributed.world_size() > 1:
            self._vote = _Vote()
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def asked(self) -> signal.Signals | None:
        """Which signal asks to stop after this step, if one does; the same on every rank.

        Every rank must call it at the end of each step. With several ranks the answer is that of the step
        before: votes travel between the CPUs while a step runs, and nobody waits for a device or a network.
        So a run leaves one step after the one that a signal came in, whichever ranks it came to.
        """
        if self.received is None and self._launched and os.getppid() != self._parent:
            self.received = signal.SIGHUP
        if self._vote is None:
            return self.received
        number = self._vote.answer()
        if number:
            return signal.Signals(number)
        self._vote.cast(self.received or 0)
        return None

    def leave_at_once(self, sentence: str) -> None:
        """From here on a signal, also one that came before, raises RunStopped with the sentence right away.

        Every rank must call it.
        """
        if self._vote is not None:
            self._vote.answer()
        self._sentence = sentence
        if self.received is not None:
            raise RunStopped(f"stopped by {self.received.name}: {sentence}")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a data loader's worker: it works until the run has left
        name = signal.Signals(number)
        if self.received is None:
            self.received, self._first = name, time.monotonic()
            if self._sentence is not None:
                raise RunStopped(f"stopped by {name.name}: {self._sentence}")
            if distributed.is_main():
                # Not print: this may interrupt a print, which does not bear to be called inside itself.
                os.write(2, f"\n{name.name}: finishing the step, then saving. Again to leave now\n".encode())
        elif not self._launched or time.monotonic() - self._first > _ECHO_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


class _Vote:
    """The largest number that any rank has cast, told later; over gloo, so without any device."""

    def __init__(self) -> None:
        self._group: Any = dist.new_group(backend="gloo")
        self._work: dist.Work | None = None
        self._number = torch.zeros((), dtype=torch.int64)

    def cast(self, number: int) -> None:
        self._number = torch.tensor(number)
        self._work = dist.all_reduce(self._number, dist.ReduceOp.MAX, group=self._group, async_op=True)

    def answer(self) -> int:
        """The outcome of the vote that is under way, 0 without one."""
        if self._work is None:
            return 0
        self._work.wait()
        self._work = None
        return int(self._number)
