"""Signals that ask a run to save and leave, obeyed by all ranks after the same step."""

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
"""What Slurm, Kubernetes, `kill`, Ctrl-C and a terminal that closes send; those that the system knows."""

# What a run can be stopped by. Ranks agree on the number of one, counted from 1.
_REASONS = (*_SIGNAL_NAMES, _CLOSED_PIPE, _LAUNCHER_GONE)

# Both launchers set these for the processes they start, and pass on signals that may have come here already.
_LAUNCHER_VARIABLES = ("TORCHELASTIC_RUN_ID", "ACCELERATE_DYNAMO_BACKEND")
_ECHO_SECONDS = 3.0
# After the last step: between two votes, and for a rank that waits within a collective call to leave.
_VOTE_SECONDS = 0.2
_GRACE_SECONDS = 10.0


class RunStopped(BaseException):
    """A run has left because it was asked to; the message says where it stands and how to continue.

    Like KeyboardInterrupt it is no error, and no handler of errors catches it.
    """


class StopSignals:
    """Context in which a stop signal is noted and waits for the end of the step; a second one ends at once.

    A signal that this process was told to ignore (such as by ``nohup`` or a shell's ``&``) stays ignored, and
    outside of the main thread, where Python allows no handlers, all are left alone. Under a launcher the same
    signal often comes twice, from whoever sent it and from the launcher that passes it on: there only one
    that comes 3 s after the first counts as the second. SIGHUP never does: a terminal that closes sends it
    more than once, and no person is impatient.

    Two more things count as a signal: the end of the launcher, since a run that outlived it would meet the
    one that is started next, and an output pipe that was closed, as by ``| head -1``. The latter does not
    count where SIGHUP is ignored: what such a run was written to may end, and the run goes on.

    Args:
        timeout: how long a rank waits for the votes of the others; None: torch's default.

    Attributes:
        received: the name of the signal that has come to this process, or what else counts as one.
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
        """What asks to stop after this step, if anything does: a name, the same on every rank.

        Every rank must call it at the end of each step. With several ranks the answer is that of the step
        before: votes travel between the CPUs while a step runs, and nobody waits for a device or a network.
        So a run leaves one step after the one that a signal came in, whichever ranks it came to.
        """
        self._look_around()
        if self._vote is None:
            return self.received
        reason = self._vote.answer()
        if reason is None:
            self._vote.cast(self.received)
        return reason

    def leave_at_once(self, sentence: str) -> None:
        """From here on a signal, also one that came before, raises RunStopped with the sentence right away.

        Every rank must call it. A signal that came before, to any rank, raises on all of them: none is left
        waiting for one that has gone.
        """
        self._look_around()
        reason = self.received
        if self._vote is not None:
            before = self._vote.answer()  # the last step's, which misses what has come since
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
        """Lets all ranks leave at once when one is asked to, wherever their main threads are.

        It ends when all ranks have finished, or one has gone without a vote.
        """
        everyone_has_finished = False
        while not everyone_has_finished:
            self._finished.wait(_VOTE_SECONDS)
            try:
                vote.cast(self.received, finished=self._finished.is_set())
                reason = vote.answer()
            except RuntimeError:  # a rank has ended in an error, which the others meet in their main threads
                return
            if reason is not None and self._before:
                self._agreed = reason
                main = threading.main_thread().ident
                assert main is not None
                signal.pthread_kill(main, next(iter(self._before)))
                if not self._finished.wait(_GRACE_SECONDS):
                    # The main thread waits for a rank that has left. Everything is saved.
                    if distributed.is_main():
                        write_to_terminal(f"stopped by {reason}: {self._sentence}")
                    os._exit(0)
                return
            everyone_has_finished = vote.everyone_has_finished

    def _look_around(self) -> None:
        """Notes what counts as a signal, but comes without one."""
        if self.received is not None:
            return
        if self._launched and os.getppid() != self._parent:
            self.received = _LAUNCHER_GONE
        elif output_pipe_is_closed() and not self._survives_hang_up:
            self.received = _CLOSED_PIPE
            write_to_terminal("the output pipe is closed: finishing the step, then saving")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a data loader's worker: it works until the run has left
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
    """What the ranks tell one another; over gloo, so without any device.

    Attributes:
        everyone_has_finished: of the last vote, whether all ranks have cast ``finished``.
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
        """Takes the group down, unless a vote is under way, or all groups have been taken down already."""
        if self._work is None and dist.is_initialized():
            dist.destroy_process_group(self._group)

    def answer(self) -> str | None:
        """The last of `_REASONS` that any rank has cast; None if no rank has, or no vote is under way."""
        if self._work is None:
            return None
        self._work.wait()
        self._work = None
        number, unfinished = self._numbers.tolist()
        self.everyone_has_finished = not unfinished
        return _REASONS[number - 1] if number else None
