import errno
import os
from pathlib import Path

import pytest

from latentae.latents.cache.files import (
    FullDiskError,
    has_keys,
    remove_unfinished,
    write_aside,
    write_together,
)


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


def test_files_are_written_together_or_not_at_all(tmp_path, monkeypatch):
    write_together(tmp_path / "new/out", {"a": b"1", "b": b"2"})
    assert {file.name: file.read_bytes() for file in (tmp_path / "new/out").iterdir()} == {
        "a": b"1",
        "b": b"2",
    }
    write = Path.write_bytes

    def fail(path, content):
        if path.name.startswith(".b"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", fail)
    for folder in ("new/out", "other"):
        with pytest.raises(FullDiskError, match=r"2 files into .* \(1\.0 MiB\): nothing there has changed"):
            write_together(tmp_path / folder, {"a": b"3", "b": bytes(2**20)})
    assert {file.name: file.read_bytes() for file in (tmp_path / "new/out").iterdir()} == {
        "a": b"1",
        "b": b"2",
    }
    assert not (tmp_path / "other").exists()


def test_what_killed_processes_left_is_removed(tmp_path):
    for name in (".a.safetensors.17", ".index.json.3", "a.safetensors", ".hidden"):
        Path(tmp_path / name).write_bytes(b"")
    remove_unfinished(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [".hidden", "a.safetensors"]


@pytest.mark.parametrize(
    ("content", "has"),
    [('{"a": 1, "b": 2}', True), ('{"a": 1}', False), ("[]", False), ("// no JSON", False)],
)
def test_whose_a_file_is_by_its_keys(content, has, tmp_path):
    (tmp_path / "settings.json").write_text(content)
    assert has_keys(tmp_path / "settings.json", {"a", "b"}) is has
    assert not has_keys(tmp_path / "missing.json", {"a", "b"})
