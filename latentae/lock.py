"""Keeps two processes out of one folder, where each would remove or overwrite what the other writes."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import torch

from latentae import distributed

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class FolderLock:
    """A lock on a folder, which one launch holds at a time; its ranks hold it together.

    The lock ends with the process that holds it, however that ends. File systems and systems without such
    locks, Windows among them, are not guarded.

    Args:
        folder: the folder. Its file ``.lock`` names the process that holds the lock.
        option: the option that chose the folder, for the message.
        patience: seconds to wait for another process, such as one that was just told to save and leave.
    """

    def __init__(self, folder: Path, option: str, patience: float = 30.0) -> None:
        self.folder = folder
        self.option = option
        self.patience = patience
        self._path = folder / ".lock"
        self._file: IO[str] | None = None

    def acquire(self, say: Callable[[str], None]) -> None:
        """Takes the lock if the folder exists and it is not held yet; every rank must call it.

        Args:
            say: is told if there is something to wait for.

        Raises:
            ValueError: another process holds it.
        """
        taken = int(self._wait(say)) if distributed.is_main() else 1
        if not distributed.broadcast_from_main(torch.tensor(taken)):
            raise ValueError(
                f"{self.option} is {self.folder}, where another process is at work{self._holder()}; wait for "
                f"it, stop it, or choose another {self.option}"
            )

    def release(self) -> None:
        """Gives the lock back and removes its file; does nothing if it is not held."""
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            self._file.close()
            self._file = None

    @contextmanager
    def held(self, say: Callable[[str], None]) -> Iterator[None]:
        """Holds the lock for the length of a ``with`` block; every rank must enter it.

        Raises:
            ValueError: as ``acquire``.
        """
        self.acquire(say)
        try:
            yield
        finally:
            self.release()

    def _wait(self, say: Callable[[str], None]) -> bool:
        """Tries until the patience ends; returns False if another process still holds the lock."""
        if fcntl is None or self._file is not None or not self.folder.is_dir() or self._try():
            return True
        say(f"waiting for another process that is at work in {self.folder}{self._holder()}")
        ends = time.monotonic() + self.patience
        while not self._try():
            if time.monotonic() > ends:
                return False
            time.sleep(0.2)
        return True

    def _try(self) -> bool:
        """Returns False if another process holds the lock; True also if there cannot be one."""
        try:
            file = self._path.open("a+")
        except OSError:  # a folder that cannot be written to; the first file of the work will report it
            return True
        try:
            # Unlike flock, these locks work over NFS, and a process never blocks itself.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            return not isinstance(error, BlockingIOError | PermissionError)  # others: no locks here
        if not self._is_current(file):  # the process before has removed it: try its successor
            file.close()
            return False
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        self._file = file  # stays open with this object: closing it would release the lock
        return True

    def _is_current(self, file: IO[str]) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), self._path.stat())
        except OSError:
            return False

    def _holder(self) -> str:
        try:
            words = self._path.read_text().strip()
        except OSError:
            return ""
        return f" ({words})" if words else ""
