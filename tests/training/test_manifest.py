import json
import os

import pytest

from latentae.training import manifest
from latentae.training.manifest import find_damage, write_manifest


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "weights").write_bytes(bytes(range(256)) * 8)
    (tmp_path / "progress").write_text("{}")
    write_manifest(tmp_path)
    return tmp_path


def test_whole(folder):
    files = json.loads((folder / "manifest.json").read_text())["files"]
    assert files["progress"] == {
        "bytes": 2,
        # of the two bytes {}
        "sha256": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
    }
    assert files["weights"]["bytes"] == 2048
    assert sorted(files) == ["progress", "weights"]
    assert find_damage(folder) is None


def test_a_truncated_file(folder):
    os.truncate(folder / "weights", 2000)
    assert find_damage(folder) == "weights has 2000 bytes of 2048"


def test_a_flipped_bit(folder):
    content = bytearray((folder / "weights").read_bytes())
    content[1000] ^= 4
    (folder / "weights").write_bytes(content)
    assert find_damage(folder) == "weights has changed since it was written"


def test_a_missing_file(folder):
    (folder / "weights").unlink()
    assert find_damage(folder) == "weights is missing"


@pytest.mark.parametrize(
    "content", [b"", b'{"files": {"weig', b"[]", b'{"files": {"weights": 3}}', b"\xff\xfe"]
)
def test_a_damaged_list(folder, content):
    (folder / "manifest.json").write_bytes(content)
    assert find_damage(folder) == "manifest.json is no list of files"


def test_no_list(folder):
    (folder / "manifest.json").unlink()
    assert find_damage(folder) == "manifest.json cannot be read: No such file or directory"


def test_a_disk_that_lies(tmp_path, monkeypatch):
    (tmp_path / "weights").write_text("as written")
    monkeypatch.setattr(manifest, "_forget_cached", lambda path: path.write_text("something else"))
    with pytest.raises(OSError, match="does not give back what was written to weights"):
        write_manifest(tmp_path)
    assert not (tmp_path / "manifest.json").exists()
