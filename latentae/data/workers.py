"""Loader workers: they outlive a run's stop signals, and a worker that dies becomes a clear error."""

from __future__ import annotations

import atexit
import multiprocessing
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

from torch.utils.data import DataLoader, get_worker_info

_SECONDS_AFTER_SIGTERM = 60
_SECONDS_TO_DIE = 1.0
# Fetching a batch from the memory of a dying process raises one of these.
_LOST = (ConnectionError, EOFError, FileNotFoundError)

_all_workers: WeakSet[Any] = WeakSet()
# At exit, multiprocessing sends workers SIGTERM and waits. Ours stay alive for a while after SIGTERM.
atexit.register(lambda: _kill(_all_workers))


class WorkerDiedError(RuntimeError):
    """A process that loads images ended unexpectedly. The message says how."""


def worker_number() -> tuple[int, int]:
    """Returns this worker's number and the number of workers; (0, 1) in the main process."""
    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)


class WatchedLoader(DataLoader[Any]):
    """A DataLoader that raises ``WorkerDiedError`` from ``next`` if one of its workers dies.

    A plain DataLoader raises from a signal handler, which can interrupt the training anywhere, even halfway
    through an optimizer step. Here the weights always belong to a whole number of steps and can be saved.
    """

    def __init__(self, dataset: Any, *, num_workers: int, **options: Any) -> None:
        if num_workers < 0:
            raise ValueError(f"num_workers={num_workers} must be 0 or more")
        self._workers: list[Any] = []
        super().__init__(
            dataset,
            num_workers=num_workers,
            worker_init_fn=_set_signal_handlers if num_workers else None,
            **options,
        )

    def __iter__(self) -> Any:
        if not self.num_workers:
            return super().__iter__()
        others = set(multiprocessing.active_children())
        with _no_errors_from_signals():
            batches = super().__iter__()
        started = [process for process in multiprocessing.active_children() if process not in others]
        self._workers = started or self._workers  # persistent workers of the previous iteration go on
        _all_workers.update(started)
        return _watch(batches, self._workers)


def _set_signal_handlers(worker: int) -> None:
    # Terminals and job schedulers also send their signals to workers, but the main process may still need
    # images to finish its step and save. The alarm ends a worker that hangs.
    for name in ("SIGINT", "SIGUSR1", "SIGHUP"):
        if name in signal.Signals.__members__:  # only Unix has all of them
            signal.signal(signal.Signals[name], signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_SECONDS_AFTER_SIGTERM))


def _watch(batches: Iterator[Any], workers: list[Any]) -> Iterator[Any]:
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except BaseException as error:
            dead = _dead(workers, wait=isinstance(error, _LOST))
            reasons = "; ".join(f"a process that loads images {_reason(each.exitcode)}" for each in dead)
            _kill(workers)  # the iteration is over
            if dead and isinstance(error, (RuntimeError, *_LOST)):
                raise WorkerDiedError(
                    f"{reasons}. If it happens again, set a smaller num_workers, or num_workers=0 to load "
                    "images in the main process"
                ) from error
            raise
        yield batch


def _dead(workers: list[Any], *, wait: bool) -> list[Any]:
    """Returns the workers that ended unexpectedly; with ``wait``, gives their exit codes time to arrive."""
    until = time.monotonic() + _SECONDS_TO_DIE if wait else 0.0
    while True:
        # An exit code of None means that the worker is alive and has passed on an error of its own.
        dead = [worker for worker in workers if worker.exitcode not in (None, 0)]
        if dead or time.monotonic() >= until:
            return dead
        time.sleep(0.01)


def _kill(workers: Iterable[Any]) -> None:
    for worker in list(workers):
        worker.kill()


def _reason(exit_code: int) -> str:
    if exit_code > 0:
        return f"ended with code {exit_code}"
    name = signal.Signals(-exit_code).name
    hints = {
        "SIGKILL": ", as the system does when memory runs out",
        "SIGBUS": ", as happens when shared memory (/dev/shm) is full",
        "SIGSEGV": ", a fault in a decoder",
    }
    return f"was ended by signal {-exit_code} ({name}{hints.get(name, '')})"


@contextmanager
def _no_errors_from_signals() -> Iterator[None]:
    """Removes torch's SIGCHLD handler, which raises errors wherever the program is.

    A DataLoader without it still notices a dead worker in ``next``, within a few seconds.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        yield  # torch sets no handler here
        return
    _remove_torch_handler(signal.SIG_DFL)  # set by an earlier DataLoader
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        _remove_torch_handler(before)


def _remove_torch_handler(replacement: Any) -> None:
    if getattr(signal.getsignal(signal.SIGCHLD), "__module__", "").startswith("torch.utils.data"):
        # None stands for a handler that was not set by Python.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if replacement is None else replacement)
