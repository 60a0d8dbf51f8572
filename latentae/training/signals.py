"""Signals that ask a run to save and stop; all ranks obey after the same step."""

from __future__ import annotations

import os
import signal
import threading
import time
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from latentae import distributed
from latentae.console import output_pipe_is_closed, write_to_terminal

_HANG_UP, _CLOSED_PIPE, _LAUNCHER_GONE = "SIGHUP", "a closed output pipe", "the end of its launcher"
_SIGNAL_NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", _HANG_UP)
STOP_SIGNALS = tuple(signal.Signals[name] for name in _SIGNAL_NAMES if name in signal.Signals.__members__)
"""The signals of Slurm, Kubernetes, `kill`, Ctrl-C and a closing terminal, as far as the system has them."""

# What can stop a run. Ranks agree on the number of one, counted from 1.
_REASONS = (*_SIGNAL_NAMES, _CLOSED_PIPE, _LAUNCHER_GONE)

# Set by both launchers, which also pass on signals that this process may have received already.
_LAUNCHER_VARIABLES = ("TORCHELASTIC_RUN_ID", "ACCELERATE_DYNAMO_BACKEND")
_ECHO_SECONDS = 3.0
# After the last step: the time between two votes, and the time that a waiting rank has to leave.
_VOTE_SECONDS = 0.2
_GRACE_SECONDS = 10.0


class RunStopped(BaseException):
    """A run has stopped because it was asked to; the message says where it stands and how to continue.

    Like KeyboardInterrupt it is no error, and no handler of errors catches it.
    """


class StopSignals:
    """Context that holds a stop signal until the end of the step; a second signal ends the process at once.

    A signal that this process was told to ignore (such as by ``nohup`` or a shell's ``&``) stays ignored.
    Outside the main thread, where Python allows no handlers, nothing is changed. Under a launcher the same
    signal often comes twice, from its sender and from the launcher that passes it on. There, a second signal
    only counts if it comes at least 3 s after the first. A second SIGHUP never counts, since a terminal that
    closes sends several.

    Two more events count as a signal: the end of the launcher, since a run that outlived it would collide
    with the next one, and a closed output pipe, as by ``| head -1``. The latter does not count if SIGHUP is
    ignored: such a run is meant to outlive its output.

    Args:
        timeout: how long a rank waits for the votes of the others; None: torch's default.

    Attributes:
        received: the name of the signal or event that this process has received.
    """

    def __init__(self, timeout: timedelta | None = None) -> None:
        self.received: str | None = None
        self.timeout = timeout
        self._first = 0.0
        self._launched = any(name in os.environ for name in _LAUNCHER_VARIABLES)
        self._parent = os.getppid()
        self._process = os.getpid()
        self._before: dict[signal.Signals, Any] = {}
        self._survives_hang_up = False
        self._sentence: str | None = None
        self._agreed: str | None = None
        self._finished = threading.Event()
        self._vote: _Vote | None = None
        self._voter: threading.Thread | None = None

    def __enter__(self) -> StopSignals:
        if distributed.world_size() > 1:
            self._vote = _Vote(self.timeout)
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
                elif number.name == _HANG_UP:
                    self._survives_hang_up = True
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        self._finished.set()
        if self._voter is not None and kind is None:
            self._voter.join()
        if self._vote is not None and (self._voter is None or not self._voter.is_alive()):
            self._vote.close()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def asked(self) -> str | None:
        """Returns the name of what asks to stop after this step, the same on every rank; None: nothing.

        Every rank must call it at the end of each step. With several ranks the answer is the vote of the
        step before: votes travel between the CPUs while a step runs, so nothing waits for a device or a
        network. The run stops one step after the signal, whichever ranks received it.
        """
        self._look_around()
        if self._vote is None:
            return self.received
        reason = self._vote.answer()
        if reason is None:
            self._vote.cast(self.received)
        return reason

    def leave_at_once(self, sentence: str) -> None:
        """From here on, a signal raises RunStopped with the sentence at once, also one that came before.

        Every rank must call it. A signal that came before, to any rank, raises on all of them, so that none
        waits for a rank that has left.
        """
        self._look_around()
        reason = self.received
        if self._vote is not None:
            before = self._vote.answer()  # of the last step, without signals since then
            self._vote.cast(self.received)
            reason = self._vote.answer() or before
        if reason is None:
            self._sentence = sentence
            if self._vote is not None:
                self._voter = threading.Thread(target=self._keep_voting, args=(self._vote,), daemon=True)
                self._voter.start()
                return
            reason = self.received  # in the meantime
        if reason is not None:
            raise RunStopped(f"stopped by {reason}: {sentence}")

    def _keep_voting(self, vote: _Vote) -> None:
        """Stops all ranks at once if one is asked to, wherever their main threads are.

        Ends when all ranks have finished, or one has left without a vote.
        """
        everyone_has_finished = False
        while not everyone_has_finished:
            self._finished.wait(_VOTE_SECONDS)
            try:
                vote.cast(self.received, finished=self._finished.is_set())
                reason = vote.answer()
            except RuntimeError:  # a rank has failed, which the others notice in their main threads
                return
            if reason is not None and self._before:
                self._agreed = reason
                main = threading.main_thread().ident
                assert main is not None
                signal.pthread_kill(main, next(iter(self._before)))
                if not self._finished.wait(_GRACE_SECONDS):
                    # The main thread is waiting for a rank that has left. Everything is saved.
                    if distributed.is_main():
                        write_to_terminal(f"stopped by {reason}: {self._sentence}")
                    os._exit(0)
                return
            everyone_has_finished = vote.everyone_has_finished

    def _look_around(self) -> None:
        """Notes the events that count as a signal."""
        if self.received is not None:
            return
        if self._launched and os.getppid() != self._parent:
            self.received = _LAUNCHER_GONE
        elif output_pipe_is_closed() and not self._survives_hang_up:
            self.received = _CLOSED_PIPE
            write_to_terminal("the output pipe is closed: finishing the step, then saving")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a data loader's worker, which works until the run has stopped
        if self._agreed is not None:
            reason, self._agreed = self._agreed, None
            raise RunStopped(f"stopped by {reason}: {self._sentence}")
        name = signal.Signals(number).name
        if self.received is None:
            self.received, self._first = name, time.monotonic()
            if self._voter is not None:
                return
            if self._sentence is not None:
                raise RunStopped(f"stopped by {name}: {self._sentence}")
            if distributed.is_main():
                write_to_terminal(f"{name}: finishing the step, then saving. Again to leave now")
        elif name == _HANG_UP:
            return
        elif not self._launched or time.monotonic() - self._first > _ECHO_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


class _Vote:
    """A vote of the ranks over gloo, so without any device.

    Attributes:
        everyone_has_finished: whether all ranks have cast ``finished`` in the last vote.
    """

    def __init__(self, timeout: timedelta | None) -> None:
        self.everyone_has_finished = False
        self._group: Any = dist.new_group(backend="gloo", timeout=timeout)
        self._work: dist.Work | None = None
        self._numbers = torch.zeros(2, dtype=torch.int64)

    def cast(self, reason: str | None, *, finished: bool = False) -> None:
        number = 0 if reason is None else _REASONS.index(reason) + 1
        self._numbers = torch.tensor([number, int(not finished)])
        self._work = dist.all_reduce(self._numbers, dist.ReduceOp.MAX, group=self._group, async_op=True)

    def close(self) -> None:
        """Destroys the group, unless a vote is under way or all groups have been destroyed already."""
        if self._work is None and dist.is_initialized():
            dist.destroy_process_group(self._group)

    def answer(self) -> str | None:
        """Returns the last of `_REASONS` that any rank has cast; None without one, or without a vote."""
        if self._work is None:
            return None
        self._work.wait()
        self._work = None
        number, unfinished = self._numbers.tolist()
        self.everyone_has_finished = not unfinished
        return _REASONS[number - 1] if number else None
