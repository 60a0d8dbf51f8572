"""Another process that holds the lock of a folder, for tests of what a second one does."""

from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path

from latentae.lock import FolderLock
from tests.processes import CONTEXT, fork


def _hold(folder: Path, taken: Event, leave: Event) -> None:
    with FolderLock(folder, "out").held(print):
        taken.set()
        leave.wait(60)


@contextmanager
def another_process(folder: Path) -> Iterator[tuple[BaseProcess, Event]]:
    """Yields a process that holds the lock of ``folder``, and the event that lets it leave."""
    taken, leave = CONTEXT.Event(), CONTEXT.Event()
    process = fork(_hold, folder, taken, leave)
    assert taken.wait(60)
    yield process, leave
    if process.is_alive():  # setting it would wait for ever for a waiter that was killed
        leave.set()
    process.join()
