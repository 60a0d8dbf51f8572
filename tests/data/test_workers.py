import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from latentae.data import ImageDataset, RandomCrop, WorkerDiedError, training_loader, workers
from latentae.data.workers import WatchedLoader, worker_number
from tests.data.pictures import ListSource

ROOT = Path(__file__).resolve().parents[2]


class Deadly(ListSource):
    """Ends the process that decodes picture 5."""

    def __init__(self, end) -> None:
        super().__init__(8)
        self.end = end

    def load(self, index, channels, minimum_side=None):
        if index == 5:
            self.end()
        return super().load(index, channels, minimum_side)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave() -> None:
    os._exit(3)


@pytest.fixture
def impatient(monkeypatch):
    """A DataLoader that looks after its workers more often than every 5 s."""
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (kill, r"was ended by signal 9 \(SIGKILL, as the system does when memory runs out\)"),
        (leave, "ended with code 3"),
    ],
)
def test_a_worker_that_dies_is_reported_from_next(impatient, end, reason):
    batches = iter(training_loader(ImageDataset(Deadly(end), RandomCrop(4), 3), batch_size=2, num_workers=2))
    handler = signal.getsignal(signal.SIGCHLD)
    assert handler is signal.SIG_DFL  # nothing that raises in the middle of a training step
    with pytest.raises(WorkerDiedError, match=f"a process that loads images {reason}.*num_workers=0"):
        list(itertools.islice(batches, 5))  # an epoch is four


@pytest.mark.parametrize("error", [ConnectionResetError, EOFError, FileNotFoundError])
def test_a_worker_that_dies_with_a_batch_on_its_way(error):
    def fetch():
        yield "a batch"
        raise error("the other end is gone")

    process = multiprocessing.get_context("fork").Process(target=lambda: (time.sleep(0.2), os._exit(3)))
    process.start()
    batches = workers._watch(fetch(), [process])
    assert next(batches) == "a batch"
    with pytest.raises(WorkerDiedError, match="ended with code 3"):
        next(batches)
    process.join()


def test_a_file_that_is_missing_is_no_death(monkeypatch):
    monkeypatch.setattr(workers, "_SECONDS_TO_DIE", 0.05)

    class Missing(ListSource):
        def load(self, index, channels, minimum_side=None):
            raise FileNotFoundError("picture.png")

    batches = iter(training_loader(ImageDataset(Missing(4), RandomCrop(4), 3), batch_size=2, num_workers=1))
    with pytest.raises(FileNotFoundError, match=r"picture\.png"):
        next(batches)


def test_a_worker_that_never_began(impatient, monkeypatch):
    monkeypatch.setattr(workers, "_set_signal_handlers", lambda worker: os._exit(4))
    batches = one_worker()
    with pytest.raises(WorkerDiedError, match="ended with code 4"):
        next(batches)


def test_other_errors_come_through_as_they_are():
    class Faulty(ListSource):
        def load(self, index, channels, minimum_side=None):
            raise RuntimeError("a mistake in the source")

    batches = iter(training_loader(ImageDataset(Faulty(4), RandomCrop(4), 3), batch_size=2, num_workers=1))
    with pytest.raises(RuntimeError, match="a mistake in the source") as caught:
        next(batches)
    assert not isinstance(caught.value, WorkerDiedError)


def one_worker(count: int = 4):
    """A loader's batches of one image, made by one worker."""
    return iter(
        training_loader(ImageDataset(ListSource(count), RandomCrop(4), 3), batch_size=1, num_workers=1)
    )


def test_torchs_handler_of_another_loader_is_taken_back_too():
    def raises_anywhere(number, frame):
        raise AssertionError("in the middle of a training step")

    raises_anywhere.__module__ = "torch.utils.data._utils.signal_handling"
    before = signal.signal(signal.SIGCHLD, raises_anywhere)
    try:
        next(one_worker())
        assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_handler_of_ones_own_stays(monkeypatch):
    monkeypatch.setattr("torch.utils.data._utils.signal_handling._SIGCHLD_handler_set", False)

    def own(number, frame):
        pass

    before = signal.signal(signal.SIGCHLD, own)
    try:
        next(one_worker())
        assert signal.getsignal(signal.SIGCHLD) is own
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_workers_outlive_the_signals_that_ask_a_run_to_stop():
    others = set(multiprocessing.active_children())
    batches = one_worker()
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - others
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker.pid, number)
        time.sleep(0.1)
        for _ in range(5):
            next(batches)
    assert worker.is_alive()


def test_the_main_process_is_worker_0_of_1():
    assert worker_number() == (0, 1)


def test_an_iteration_can_be_repeated():
    data_loader = WatchedLoader(list(range(4)), num_workers=1, persistent_workers=True, batch_size=2)
    first, second = list(data_loader), list(data_loader)
    assert torch.equal(torch.cat(first), torch.cat(second))
    assert len(data_loader._workers) == 1


def test_a_program_that_fails_does_not_wait_for_its_workers():
    code = """
from latentae.data import ImageDataset, RandomCrop, training_loader
from tests.data.pictures import ListSource

dataset = ImageDataset(ListSource(4), RandomCrop(4), 3)
batches = iter(training_loader(dataset, batch_size=1, num_workers=2))
next(batches)
raise SystemExit(7)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=50, check=False)
    assert done.returncode == 7
