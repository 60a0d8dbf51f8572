import errno
import os
from pathlib import Path

import pytest

from latentae.latents.cache.files import FullDiskError, remove_unfinished, write_aside


def test_a_file_is_replaced_whole(tmp_path):
    write_aside(tmp_path / "a.json", b"old")
    write_aside(tmp_path / "a.json", b"new")
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_bytes() == b"new"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_says_so_and_leaves_nothing_behind(code, tmp_path, monkeypatch):
    (tmp_path / "a.safetensors").write_bytes(b"finished")

    def fail(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(FullDiskError, match=r"no space left to write .*b\.safetensors \(2\.0 MiB\).*goes on"):
        write_aside(tmp_path / "b.safetensors", bytes(2**21))
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_aside(tmp_path / "nowhere/a.json", b"")


def test_what_killed_processes_left_is_removed(tmp_path):
    for name in (".a.safetensors.17", ".index.json.3", "a.safetensors", ".hidden"):
        Path(tmp_path / name).write_bytes(b"")
    remove_unfinished(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [".hidden", "a.safetensors"]
