import json

import pytest
import torch

from latentae.diffusion.folder import ProbeFolder


def test_claimed_once(tmp_path):
    folder = ProbeFolder(tmp_path / "probe")
    folder.check()
    folder.claim({"steps": 5, "size": (1, 2), "seed": 0})
    folder.check()
    folder.claim({"steps": 5, "size": (1, 2), "seed": 0})
    before = (folder.root / "settings.json").read_bytes()
    with pytest.raises(ValueError, match=r"begun with steps 5, and this is 6 \(and seed\): choose another"):
        folder.claim({"steps": 6, "size": (1, 2), "seed": 1})
    assert (folder.root / "settings.json").read_bytes() == before


def test_the_folder_of_something_else(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files than a probe"):
        ProbeFolder(tmp_path).check()
    with pytest.raises(ValueError, match=r"notes\.txt is a file"):
        ProbeFolder(tmp_path / "notes.txt" / "probe").check()


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
