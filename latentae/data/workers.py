"""Loader workers that may die: what each was decoding is kept where its death cannot take it."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, get_worker_info

from latentae.data.names import printable

_NAME_BYTES = 1000
_PID_BYTES = 8
_SECONDS_AFTER_SIGTERM = 60
_SECONDS_TO_DIE = 1.0
# What comes of fetching a batch out of the memory of a process that is dying.
_LOST = (ConnectionError, EOFError, FileNotFoundError)

_own_slot: NDArray[np.uint8] | None = None  # in a worker: where it says what it is doing
_all_workers: WeakSet[Any] = WeakSet()
# At the end of a program multiprocessing asks workers to leave by SIGTERM, after which ours stay for a while.
atexit.register(lambda: _kill(_all_workers))


class WorkerDiedError(RuntimeError):
    """A process that loads images ended before its time; the message says which image it was on."""


class Noticeboard:
    """A slot for each worker in memory that all processes share: its process id, and what it is decoding."""

    def __init__(self, num_workers: int) -> None:
        self._slots = torch.zeros(num_workers, _PID_BYTES + _NAME_BYTES, dtype=torch.uint8).share_memory_()

    def slot(self, worker: int) -> NDArray[np.uint8]:
        return self._slots[worker].numpy()

    def read(self) -> dict[int, str]:
        """Process id -> the last name announced, of those workers that have announced one."""
        slots = [self.slot(worker).tobytes() for worker in range(len(self._slots))]
        names = {
            int.from_bytes(slot[:_PID_BYTES], "little"): slot[_PID_BYTES:]
            .rstrip(b"\0")
            .decode(errors="replace")
            for slot in slots
        }
        names.pop(0, None)
        return names


def announce(name: str) -> None:
    """Say, in a worker, what it decodes next; elsewhere nothing happens. Takes some microseconds."""
    if _own_slot is not None:
        encoded = printable(name).encode()[:_NAME_BYTES]
        _own_slot[_PID_BYTES:] = np.frombuffer(encoded.ljust(_NAME_BYTES, b"\0"), np.uint8)


def _begin_work(board: Noticeboard, worker: int) -> None:
    """What a worker does first."""
    global _own_slot
    _own_slot = board.slot(worker)
    _own_slot[:_PID_BYTES] = np.frombuffer(os.getpid().to_bytes(_PID_BYTES, "little"), np.uint8)
    # A terminal and a job scheduler send their signals to workers too, and the main process, which may want
    # to finish its step and save, still needs their images then. The alarm ends one that hangs.
    for number in _known_signals("SIGINT", "SIGUSR1", "SIGHUP"):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_SECONDS_AFTER_SIGTERM))


def _known_signals(*names: str) -> list[signal.Signals]:
    """Those of the named signals that this system has: only Unix has all of them."""
    return [signal.Signals[name] for name in names if name in signal.Signals.__members__]


class WatchedLoader(DataLoader[Any]):
    """A DataLoader that, when one of its workers dies, raises `WorkerDiedError` from `next`.

    A plain one raises from a signal handler, so at any moment of the training, even halfway through an
    optimizer's step; here the weights are those of a whole number of steps, and can be saved.
    """

    def __init__(self, dataset: Any, *, num_workers: int, **options: Any) -> None:
        if num_workers < 0:
            raise ValueError(f"num_workers={num_workers} must be 0 or more")
        self._board = Noticeboard(num_workers) if num_workers else None
        self._workers: list[Any] = []
        super().__init__(
            dataset,
            num_workers=num_workers,
            worker_init_fn=None if self._board is None else partial(_begin_work, self._board),
            **options,
        )

    def __iter__(self) -> Any:
        if self._board is None:
            return super().__iter__()
        others = set(multiprocessing.active_children())
        with _no_errors_from_signals():
            batches = super().__iter__()
        started = [process for process in multiprocessing.active_children() if process not in others]
        self._workers = started or self._workers  # those of the iteration before may go on
        _all_workers.update(started)
        return _watch(batches, self._workers, self._board)


def _watch(batches: Iterator[Any], workers: list[Any], board: Noticeboard) -> Iterator[Any]:
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except BaseException as error:
            dead = _dead(workers, wait=isinstance(error, _LOST))
            message = _describe(dead, board)
            _kill(workers)  # this iteration is at its end
            if dead and isinstance(error, (RuntimeError, *_LOST)):
                raise WorkerDiedError(message) from error
            raise
        yield batch


def _dead(workers: list[Any], *, wait: bool) -> list[Any]:
    """Those that ended before their time; where one must have, a moment is waited for its exit code."""
    until = time.monotonic() + _SECONDS_TO_DIE if wait else 0.0
    while True:
        # None of exit code: it lives, and the error is one that it has handed on.
        dead = [worker for worker in workers if worker.exitcode not in (None, 0)]
        if dead or time.monotonic() >= until:
            return dead
        time.sleep(0.01)


def _kill(workers: Iterable[Any]) -> None:
    for worker in list(workers):
        worker.kill()


def _describe(dead: list[Any], board: Noticeboard) -> str:
    names = board.read()
    sentences = []
    for worker in dead:
        name = names.get(worker.pid, "")
        place = f"while it was on {name}" if name else "before its first image"
        sentences.append(f"a process that loads images {_reason(worker.exitcode)} {place}")
    return (
        f"{'; '.join(sentences)}. If it happens there again, remove that file; with "
        "num_workers=0 images are loaded in the main process"
    )


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
    """Takes back the handler of SIGCHLD with which torch raises errors wherever the program is.

    Without it a DataLoader still finds out, in `next`, within some seconds.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        yield  # torch sets none there
        return
    _take_back_torchs_handler(signal.SIG_DFL)  # of another DataLoader, before this one
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        _take_back_torchs_handler(before)


def _take_back_torchs_handler(replacement: Any) -> None:
    if getattr(signal.getsignal(signal.SIGCHLD), "__module__", "").startswith("torch.utils.data"):
        # None stands for a handler that was not set by Python.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if replacement is None else replacement)


def worker_number() -> tuple[int, int]:
    """This worker's number and how many there are; (0, 1) in the main process."""
    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)
