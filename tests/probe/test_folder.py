import errno
import json
import os

import pytest
import torch
from safetensors import SafetensorError

from latentae.files import FullDiskError, write_json
from latentae.probe.folder import ProbeFolder

SETTINGS = {"models": {"a": "abc"}, "sampling_steps": 25}


def test_claimed_once(tmp_path):
    folder = ProbeFolder(tmp_path / "probe")
    folder.check()
    folder.claim({**SETTINGS, "steps": 5, "size": (1, 2), "seed": 0})
    folder.check()
    folder.claim({**SETTINGS, "steps": 5, "size": (1, 2), "seed": 0})
    before = (folder.root / "settings.json").read_bytes()
    with pytest.raises(ValueError, match=r"begun with steps 5, and this is 6 \(and seed\): choose another"):
        folder.claim({**SETTINGS, "steps": 6, "size": (1, 2), "seed": 1})
    assert (folder.root / "settings.json").read_bytes() == before


@pytest.mark.parametrize(
    ("models", "says"),
    [
        ({"a": "abd"}, "was begun with another model as a, or with this one before it changed: choose"),
        ({"a": "abc", "b": "d"}, "was begun with the models a, and this is of a, b: choose another --out"),
    ],
)
def test_other_models_are_called_by_their_names(models, says, tmp_path):
    ProbeFolder(tmp_path).claim(SETTINGS)
    with pytest.raises(ValueError, match=says):
        ProbeFolder(tmp_path).claim({**SETTINGS, "models": models})


def test_the_folder_of_something_else(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files than a probe"):
        ProbeFolder(tmp_path).check()
    with pytest.raises(ValueError, match=r"notes\.txt is a file"):
        ProbeFolder(tmp_path / "notes.txt" / "probe").check()


@pytest.mark.parametrize("content", ['{"model": {}, "data": {}, "options": {}}', "// of an editor", "[]"])
def test_the_settings_of_something_else(content, tmp_path):
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(ValueError, match="holds other files than a probe"):
        ProbeFolder(tmp_path).check()


def test_a_models_part(tmp_path):
    own = ProbeFolder(tmp_path).model("a")
    assert own.result() is None
    assert own.load_state() is None
    own.save_state({"step": 3, "weights": torch.ones(2)})
    assert own.load_state()["weights"].tolist() == [1, 1]
    own.finish({"metrics": {"x": 1.5}})
    assert own.result() == {"metrics": {"x": 1.5}}
    assert own.load_state() is None
    assert sorted(path.name for path in own.root.iterdir()) == ["result.json"]


def test_a_pipeline_is_written_whole(tmp_path):
    class Pipeline:
        text = "first"

        def save_pretrained(self, folder):
            folder.mkdir()
            (folder / "model_index.json").write_text(json.dumps(self.text))

    own = ProbeFolder(tmp_path).model("a")
    own.save_state({})
    own.write_pipeline(Pipeline())
    Pipeline.text = "second"
    own.write_pipeline(Pipeline())
    assert json.loads((own.pipeline / "model_index.json").read_text()) == "second"
    assert not (own.root / ".pipeline.tmp").exists()


@pytest.fixture
def full_disk(monkeypatch):
    """Whatever is flushed to the disk finds no room, as where the last block is written."""

    def fill():
        def fail(descriptor):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", fail)

    return fill


def test_a_full_disk_is_named_and_the_state_before_stays(tmp_path, full_disk):
    own = ProbeFolder(tmp_path).model("a")
    own.save_state({"step": 3})
    (own.root / ".training.pt.17").write_bytes(b"of a killed process")
    full_disk()
    with pytest.raises(FullDiskError, match=r"no space left to write .*training\.pt"):
        own.save_state({"step": 4})
    with pytest.raises(FullDiskError, match=r"no space left to write .*result\.json"):
        write_json(own.root / "result.json", {})
    assert own.load_state() == {"step": 3}
    assert [path.name for path in own.root.iterdir()] == ["training.pt"]


def test_a_pipeline_that_does_not_fit_leaves_nothing(tmp_path):
    class Pipeline:
        def save_pretrained(self, folder):
            folder.mkdir(parents=True)
            (folder / "config.json").write_text("{}")
            raise SafetensorError("I/O error: No space left on device (os error 28)")

    own = ProbeFolder(tmp_path).model("a")
    with pytest.raises(OSError, match=r"a.pipeline cannot be written: .*No space left"):
        own.write_pipeline(Pipeline())
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_no_utf_8_are_kept(tmp_path):
    write_json(tmp_path / "a.json", {"name": "caf\udce9 é"})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"name": "caf\udce9 é"}


OLDER = {**SETTINGS, "steps": None, "seconds": None, "seed": 0}
"""Of a version with other random numbers, that noted its default of 2000 steps as null."""
NOW = {**SETTINGS, "steps": 2000, "seed": 0}


def test_a_complete_probe_of_an_older_version_opens_with_the_same_settings(tmp_path):
    folder = ProbeFolder(tmp_path)
    write_json(tmp_path / "settings.json", OLDER)
    with pytest.raises(ValueError, match=r"unfinished .* another version .* random numbers differ: choose"):
        folder.claim(NOW)
    write_json(tmp_path / "results.json", {})
    folder.claim(NOW)
    with pytest.raises(ValueError, match="begun with steps 2000, and this is 5"):
        folder.claim({**NOW, "steps": 5})
    assert json.loads((tmp_path / "settings.json").read_text()) == OLDER


def test_a_probe_of_an_older_version_that_counted_seconds_is_refused(tmp_path):
    write_json(tmp_path / "settings.json", {**OLDER, "seconds": 60.0})
    write_json(tmp_path / "results.json", {})
    with pytest.raises(ValueError, match=r"begun with steps null, and this is 2000 \(and seconds\)"):
        ProbeFolder(tmp_path).claim(NOW)
