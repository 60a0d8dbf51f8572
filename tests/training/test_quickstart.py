"""The quickstart reconstructs photographs as well as it was measured to: a part of it, and all of it."""

import pytest
from PIL import Image

from latentae.config import load_config
from latentae.latents import calibration
from latentae.training.trainer import Trainer


def train(folder, *changes):
    words = ["--config", "quickstart", f"output_dir={folder}", "trackers=[]", *changes]
    return Trainer(load_config("vqgan", words)).fit()


def test_the_first_steps_of_the_quickstart_learn(alexnet_trunk, tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "FEWEST_VIEWS", 16)
    short = ("max_steps=40", "optimizer.warmup_steps=10", "sample_every=40", "checkpoint_every=40")
    summary = train(tmp_path / "run", *short, "cpu_threads=1")
    assert summary["images"] == 36
    # The seeds 0 and 1 reached 15.92 and 16.10 dB, and 0.453 and 0.400.
    assert summary["psnr"] > 14.5
    assert summary["lpips"] < 0.5
    with Image.open(tmp_path / "run/samples/whole_000040.png") as picture:
        assert picture.size == (2 * (512 + 4), 342 + 4 + 300 + 4)


@pytest.mark.slow
def test_the_whole_quickstart(alexnet_trunk, tmp_path):
    summary = train(tmp_path / "run")
    assert summary["psnr"] > 25.5
    assert summary["lpips"] < 0.1
