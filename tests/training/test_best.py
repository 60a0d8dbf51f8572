import json
import math

import pytest

from latentae.latents import calibration
from latentae.training.best import BestCheckpoint, find_best, mark_best
from latentae.training.folder import RunFolder
from latentae.training.trainer import Trainer


@pytest.fixture
def folder(tmp_path):
    """Checkpoints 2 to 10: psnr 20, 22, not measured, 22, infinite; lpips falls."""
    folder = RunFolder(tmp_path)
    values = {2: 20.0, 4: 22.0, 6: None, 8: 22.0, 10: math.inf}
    for step, psnr in values.items():
        folder.checkpoint(step).mkdir(parents=True)
        measured = {} if psnr is None else {"validation_psnr": psnr, "validation_lpips": 1 / step}
        (folder.checkpoint(step) / "progress.json").write_text(json.dumps({"validation": measured}))
    return folder


def test_higher_or_lower_is_better(folder):
    assert find_best(folder, "validation_psnr") == BestCheckpoint(4, "validation_psnr", 22.0)
    assert find_best(folder, "validation_lpips") == BestCheckpoint(10, "validation_lpips", 0.1)
    assert find_best(folder, "validation_ssim") is None


def test_it_is_marked(folder):
    assert mark_best(folder, "validation_psnr") == folder.checkpoint(4)
    assert json.loads((folder.checkpoints / "best.json").read_text()) == {
        "step": 4,
        "metric": "validation_psnr",
        "value": 22.0,
    }
    assert len(folder.all_checkpoints()) == 5
    assert mark_best(folder, None) is None
    assert not (folder.checkpoints / "best.json").exists()


def test_a_damaged_one_is_no_candidate(folder):
    (folder.checkpoint(4) / "progress.json").write_text("{")
    assert find_best(folder, "validation_psnr").step == 8
    (folder.checkpoint(8) / "progress.json").unlink()
    assert find_best(folder, "validation_psnr").step == 2


def test_a_model_can_be_made_of_it(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "FEWEST_VIEWS", 16)
    constant = "optimizer.schedule=constant"
    Trainer(tiny(constant, "max_steps=4", "checkpoint_every=2")).fit()
    chosen = f"resume={RunFolder(tmp_path / 'run').checkpoint(2)}"
    Trainer(tiny(constant, "max_steps=2", chosen, f"output_dir={tmp_path}/chosen")).fit()
    Trainer(tiny(constant, "max_steps=2", f"output_dir={tmp_path}/short")).fit()
    chosen, short = (
        (tmp_path / run / "model/diffusion_pytorch_model.safetensors").read_bytes()
        for run in ("chosen", "short")
    )
    assert chosen == short
