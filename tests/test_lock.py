"""One process per folder."""

import os

import pytest

from latentae.lock import FolderLock
from tests.lock_holder import another_process


@pytest.fixture
def other(tmp_path):
    with another_process(tmp_path) as held:
        yield held


def holder_of(folder):
    return int((folder / ".lock").read_text().split()[1])


def test_two_processes_never_share_a_folder(tmp_path, other):
    process, _ = other
    said = []
    message = rf"out is .*another process is at work \(process {process.pid} on .*wait for.* another out"
    with pytest.raises(ValueError, match=message):
        FolderLock(tmp_path, "out", patience=0.3).acquire(said.append)
    assert len(said) == 1


def test_one_that_leaves_is_waited_for(tmp_path, other):
    _, leave = other
    FolderLock(tmp_path, "out", patience=60).acquire(lambda sentence: leave.set())
    assert leave.is_set()
    assert holder_of(tmp_path) == os.getpid()


def test_one_that_is_killed_leaves_nothing_behind(tmp_path, other):
    process, _ = other
    process.kill()
    process.join()
    FolderLock(tmp_path, "out", patience=0).acquire(print)
    assert holder_of(tmp_path) == os.getpid()


def test_before_there_is_a_folder_there_is_nothing_to_lock(tmp_path):
    lock = FolderLock(tmp_path / "new", "out")
    lock.acquire(print)
    assert not (tmp_path / "new").exists()
    (tmp_path / "new").mkdir()
    lock.acquire(print)
    assert (tmp_path / "new/.lock").read_text().startswith("process ")


def test_a_process_is_not_in_its_own_way(tmp_path):
    first, second = FolderLock(tmp_path, "out"), FolderLock(tmp_path, "out", patience=0)
    first.acquire(print)
    second.acquire(print)
    assert holder_of(tmp_path) == os.getpid()


def test_a_released_lock_leaves_no_file(tmp_path):
    with FolderLock(tmp_path, "out").held(print):
        assert (tmp_path / ".lock").is_file()
    assert list(tmp_path.iterdir()) == []
    with another_process(tmp_path):
        pass
    with pytest.raises(OSError, match="stop"), FolderLock(tmp_path, "out").held(print):
        raise OSError("stop")
    assert list(tmp_path.iterdir()) == []
