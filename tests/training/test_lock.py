import multiprocessing

import pytest

from latentae.config import ConfigError
from latentae.training.folder import RunFolder
from latentae.training.lock import RunLock

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["tests.training.kill_points"])


def hold(root, taken, leave):
    lock = RunLock(RunFolder(root))
    lock.acquire(print)
    taken.set()
    leave.wait(60)


@pytest.fixture
def other(tmp_path):
    """Another process that trains in tmp_path, and the event that lets it leave."""
    taken, leave = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path, taken, leave))
    process.start()
    assert taken.wait(60)
    yield process, leave
    if process.is_alive():  # setting it would wait for ever for a waiter that was killed
        leave.set()
    process.join()


def test_two_runs_never_share_a_folder(tmp_path, other):
    process, _ = other
    said = []
    with pytest.raises(
        ConfigError, match=rf"another process is training \(process {process.pid} on .*wait for"
    ):
        RunLock(RunFolder(tmp_path), patience=0.3).acquire(said.append)
    assert len(said) == 1


def test_one_that_leaves_is_waited_for(tmp_path, other):
    _, leave = other
    RunLock(RunFolder(tmp_path), patience=60).acquire(lambda sentence: leave.set())


def test_one_that_is_killed_leaves_nothing_behind(tmp_path, other):
    process, _ = other
    process.kill()
    process.join()
    RunLock(RunFolder(tmp_path), patience=0).acquire(print)


def test_before_there_is_a_folder_there_is_nothing_to_lock(tmp_path):
    lock = RunLock(RunFolder(tmp_path / "new"))
    lock.acquire(print)
    assert not (tmp_path / "new").exists()
    (tmp_path / "new").mkdir()
    lock.acquire(print)
    assert (tmp_path / "new/.lock").read_text().startswith("process ")


def test_a_process_is_not_in_its_own_way(tmp_path):
    first, second = RunLock(RunFolder(tmp_path)), RunLock(RunFolder(tmp_path), patience=0)
    first.acquire(print)
    second.acquire(print)
