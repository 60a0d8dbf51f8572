import errno
import os
import sys
from pathlib import Path

import pytest

from latentae.files import (
    FullDiskError,
    check_output_folder,
    file_sha256,
    flush,
    has_keys,
    list_files,
    mend_swap,
    open_aside,
    remove_unfinished,
    swap_in,
    write_aside,
    write_together,
    written_aside,
)
from tests.export.conftest import all_files


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


@pytest.fixture
def flushed(monkeypatch):
    """What the disk is waited for, in order; with the real function, which tests/conftest.py takes away."""
    posix = pytest.importorskip("posix")
    paths = []

    def fsync(descriptor):
        posix.fsync(descriptor)
        paths.append(Path(f"/proc/self/fd/{descriptor}").readlink())

    monkeypatch.setattr(os, "fsync", fsync)
    return paths


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads the names of open files from Linux")


@linux
def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path, flushed, monkeypatch):
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda path, new: (flushed.append(new), replace(path, new))[1])
    write_aside(tmp_path / "a.json", b"new")
    aside, name, folder = flushed
    assert (name, folder) == (tmp_path / "a.json", tmp_path)
    assert aside != name
    assert aside.parent == tmp_path


@linux
def test_all_files_and_folders_are_waited_for(tmp_path, flushed):
    (tmp_path / "a/b").mkdir(parents=True)
    for name in ("a/1", "a/b/2"):
        (tmp_path / name).write_text("")
    flush(tmp_path / "a")
    assert sorted(flushed) == [tmp_path / name for name in ("a", "a/1", "a/b", "a/b/2")]


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


def test_an_output_folder_is_new_empty_or_ours(tmp_path, monkeypatch):
    for folder in (tmp_path, tmp_path / "new" / "folder"):
        check_output_folder(folder, "a report", is_ours=False)
    (tmp_path / "file").write_text("")
    check_output_folder(tmp_path, "a report", is_ours=True)
    with pytest.raises(ValueError, match="holds other files than a report"):
        check_output_folder(tmp_path, "a report", is_ours=False)
    for folder in (tmp_path / "file", tmp_path / "file" / "report"):
        with pytest.raises(ValueError, match="file is a file"):
            check_output_folder(folder, "a report", is_ours=False)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(ValueError, match="there is no permission to write in"):
        check_output_folder(tmp_path / "new" / "report", "a report", is_ours=False)


def write_half(path, error):
    path.parent.mkdir(exist_ok=True)
    path.write_text("half")
    raise error


def test_file_appears_whole(tmp_path):
    target = tmp_path / "new/folder/model.safetensors"
    with written_aside(target) as aside:
        aside.write_text("weights")
        assert aside.name == target.name
        assert not target.exists()
    assert target.read_text() == "weights"
    assert all_files(tmp_path) == ["new", "new/folder", "new/folder/model.safetensors"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failure_leaves_nothing(tmp_path, error):
    with pytest.raises(error), written_aside(tmp_path / "new/folder/model.safetensors") as aside:
        write_half(aside, error)
    assert all_files(tmp_path) == []


def test_failure_leaves_what_stood_there(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "config.json").write_text("old")
    with pytest.raises(ValueError, match="full"), written_aside(target) as aside:
        write_half(aside / "config.json", ValueError("the disk is full"))
    assert all_files(tmp_path) == ["model", "model/config.json"]


def test_folder_is_replaced_whole(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "diffusion_pytorch_model.fp16.safetensors").write_text("old")
    with written_aside(target) as aside:
        aside.mkdir()
        (aside / "config.json").write_text("new")
    assert all_files(tmp_path) == ["model", "model/config.json"]


def test_replaced_folder_comes_back_if_the_new_one_cannot_take_its_place(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "config.json").write_text("old")
    with pytest.raises(FileNotFoundError), written_aside(target):
        pass  # nothing was written
    assert (target / "config.json").read_text() == "old"


def test_swapping_keeps_one_whole_folder(tmp_path):
    place, aside = tmp_path / "model", tmp_path / "aside"
    for content in ("old", "new"):
        aside.mkdir()
        (aside / "weights").write_text(content)
        swap_in(aside, place)
        assert (place / "weights").read_text() == content
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("new_is_there", [False, True])
def test_a_swap_that_was_killed_is_mended(tmp_path, new_is_there):
    place = tmp_path / "model"
    (tmp_path / ".model.old").mkdir()
    (tmp_path / ".model.old/weights").write_text("old")
    if new_is_there:
        place.mkdir()
        (place / "weights").write_text("new")
    mend_swap(place)
    assert (place / "weights").read_text() == ("new" if new_is_there else "old")
    assert all_files(tmp_path) == ["model", "model/weights"]


def test_files_are_as_readable_as_others(tmp_path):
    with written_aside(tmp_path / "model") as aside:
        aside.mkdir()
        (aside / "config.json").touch(0o600)
    with written_aside(tmp_path / "file.safetensors") as aside:
        aside.touch(0o600)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    modes = {path.name: path.stat().st_mode for path in tmp_path.rglob("*")}
    assert modes["config.json"] == modes["file.safetensors"] == modes["file"]
    assert modes["model"] == modes["folder"]


def test_list_files(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b/c").touch()
    (tmp_path / "a").touch()
    assert list_files(tmp_path) == ("a", "b/c")
    assert list_files(tmp_path / "a") == ("a",)


def test_a_file_that_is_written_piece_by_piece_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")
    with open_aside(path, 2) as file:
        file.write(b"n")
        assert path.read_bytes() == b"old"
        file.write(b"w")
    assert path.read_bytes() == b"nw"

    def fail_half_way():
        with open_aside(path, 2) as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert path.read_bytes() == b"nw"
    assert list(tmp_path.iterdir()) == [path]


def test_the_hash_of_a_file(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")  # the first example of FIPS 180-2
    assert file_sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
