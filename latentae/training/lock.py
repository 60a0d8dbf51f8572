"""One run at a time in a folder: two would remove what the other is writing."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import IO

import torch

from latentae import distributed
from latentae.config import ConfigError
from latentae.training.folder import RunFolder

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_HELD, _FREE = 1, 0


class RunLock:
    """A lock on a run's folder, which ends with the process that has it, however that ends.

    On a file system or a system without such locks nothing is guarded; Windows is one.

    Args:
        folder: the run's.
        patience: seconds to wait for another process, such as one that was just told to save and leave.
    """

    def __init__(self, folder: RunFolder, patience: float = 30.0) -> None:
        self.folder = folder
        self.patience = patience
        self._file: IO[str] | None = None

    def acquire(self, say: Callable[[str], None]) -> None:
        """Takes the lock if the folder exists and it has not been taken yet; every rank must call it.

        Args:
            say: told that there is something to wait for.

        Raises:
            ConfigError: another process has it.
        """
        outcome = self._wait(say) if distributed.is_main() else _FREE
        if int(distributed.broadcast_from_main(torch.tensor(outcome))) == _HELD:
            raise ConfigError(
                f"output_dir is {self.folder.root}, where another process is training"
                f"{self._holder()}; wait for it, stop it, or choose another output_dir"
            )

    def _wait(self, say: Callable[[str], None]) -> int:
        if fcntl is None or self._file is not None or not self.folder.root.is_dir():
            return _FREE
        ends = time.monotonic() + self.patience
        if self._try() == _HELD:
            say(f"waiting for another process that trains in {self.folder.root}{self._holder()}")
            while self._try() == _HELD:
                if time.monotonic() > ends:
                    return _HELD
                time.sleep(0.2)
        return _FREE

    def _try(self) -> int:
        try:
            file = (self.folder.root / ".lock").open("a+")
        except OSError:  # a folder that cannot be written to, which its first file will tell
            return _FREE
        try:
            # Unlike flock, these reach over NFS, and a process never stands in its own way.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.close()
            return _HELD
        except OSError:  # no locks here
            file.close()
            return _FREE
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        self._file = file  # open as long as this object: closing it would give up the lock
        return _FREE

    def _holder(self) -> str:
        try:
            words = (self.folder.root / ".lock").read_text().strip()
        except OSError:
            return ""
        return f" ({words})" if words else ""
