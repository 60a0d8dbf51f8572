import importlib
from pathlib import Path

import pytest

import benchmarks


@pytest.fixture
def ablation(monkeypatch):
    # Scripts in that folder import each other as their neighbours.
    monkeypatch.syspath_prepend(str(Path(benchmarks.__path__[0])))
    return importlib.import_module("benchmarks.bench_ablation")


def test_a_line_a_model(ablation):
    measured = {"psnr": {"value": 20.125}, "lpips_alex": {"value": 0.25}, "ssim": {"value": 0.5}}
    metrics = {
        "fd_vgg16_reconstructed": 100.4,
        "fd_vgg16_generated": 200.6,
        "fd_vgg16_noise": 300.0,
        "relative_flow_loss": 0.4321,
        "copied_share": 0.05,
        "nearest_samples": 7.0,
    }
    lines = ablation.table(
        {"models": {"ae": {"metrics": metrics}}, "reconstruction": {"ae": measured}}
    ).splitlines()
    assert len(lines) == 3
    assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|")
    assert lines[2] == "| ae | 20.12 | 0.250 | 0.500 | 100 | 201 | 300 | 0.432 | 0.050 |"
