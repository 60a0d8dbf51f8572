import json

import pytest
import torch
from safetensors.torch import save_file


@pytest.fixture
def runs(tmp_path):
    """Two runs with equal files, as far as the comparison reads them."""
    for name in ("whole", "resumed"):
        checkpoint = tmp_path / name / "checkpoints/step_000004"
        checkpoint.mkdir(parents=True)
        (checkpoint.parent / "step_000002").mkdir()
        (tmp_path / name / "model").mkdir()
        save_file({"weight": torch.ones(3)}, checkpoint / "model.safetensors")
        torch.save({"state": [{"step": 4, "average": torch.zeros(2)}]}, checkpoint / "optimizer.bin")
        (checkpoint / "config.yaml").write_text(f"output_dir: {name}\n")
        (checkpoint / "progress.json").write_text('{"step": 4}')
        save_file({"weight": torch.ones(3)}, tmp_path / name / "model/diffusion_pytorch_model.safetensors")
        lines = [{"step": 4, "loss": 0.5, "images_per_second": len(name)}]
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path / "whole", tmp_path / "resumed"


def test_equal_runs_have_lost_nothing(script, runs):
    assert script("faults").difference(*runs) == (
        "nothing: 3 tensors and numbers, the model and the log are equal bit by bit"
    )


def test_the_first_difference_is_named(script, runs):
    difference = script("faults").difference
    (runs[1] / "metrics.jsonl").write_text('{"step": 4, "loss": 0.25}')
    assert difference(*runs) == "the log differs"
    changed = {"state": [{"step": 4, "average": torch.full((2,), 1e-7)}]}
    torch.save(changed, runs[1] / "checkpoints/step_000004/optimizer.bin")
    assert difference(*runs) == "optimizer.bin.state.0.average differs"
    (runs[1] / "checkpoints/step_000004").rename(runs[1] / "checkpoints/step_000006")
    assert "another step" in difference(*runs)
