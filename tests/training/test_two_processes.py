"""Two ranks against one with a batch twice as large, in real processes over gloo."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def train(config_file, processes, *overrides, script="train_vqgan.py"):
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
    launcher += ["--master_addr=127.0.0.1", f"--master_port={free_port()}"]
    result = subprocess.run(
        [sys.executable, *launcher, f"scripts/{script}", "--config", str(config_file), *overrides],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result


def weights(folder):
    return load_file(folder / "model/diffusion_pytorch_model.safetensors")


MODELS = {
    "vqgan": ("train_vqgan.py", ["model.quantizer.type=vector"]),
    "vqgan with an EMA codebook": ("train_vqgan.py", ["model.quantizer.type=ema"]),
    "kl": (
        "train_kl_vae.py",
        ["model.class=KLVAE", "loss.kl.weight=0.01", "loss.adversarial=null", "discriminator=null"],
    ),
}


@pytest.mark.parametrize("model", MODELS)
def test_two_ranks_equal_one(tiny, tmp_path, model):
    script, changes = MODELS[model]
    shared = [*changes, "max_steps=5", "gradient_accumulation_steps=2", "checkpoint_every=5"]
    # Adam divides by the gradient's size, which turns the rounding of a tiny one into a whole step.
    shared += ["optimizer.epsilon=1.0e-3"]
    shared += ["discriminator.optimizer.epsilon=1.0e-3"] if "gan" in model else []
    train(tiny.file, 1, *shared, "batch_size=4", f"output_dir={tmp_path}/one", script=script)
    train(tiny.file, 2, *shared, "batch_size=2", f"output_dir={tmp_path}/two", script=script)

    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, value in one.items():
        torch.testing.assert_close(
            two[name], value, rtol=1e-4, atol=1e-5
        )  # five steps move a weight by up to 5e-3
    lines, summaries = zip(*(read_numbers(tmp_path / run) for run in ("one", "two")), strict=True)
    assert lines[0].keys() == lines[1].keys()
    for key in lines[0].keys() - {"images_per_second"}:
        assert lines[1][key] == pytest.approx(lines[0][key], rel=1e-3, abs=1e-5), key
    assert summaries[0]["images"] == summaries[1]["images"]
    assert summaries[1]["psnr"] == pytest.approx(summaries[0]["psnr"], abs=1e-3)


def read_numbers(run):
    """The last line of the log, and the summary."""
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    return line, json.loads((run / "summary.json").read_text())


def test_two_ranks_resume(tiny, tmp_path):
    train(tiny.file, 2, "max_steps=3", f"output_dir={tmp_path}/parts")
    train(tiny.file, 2, "max_steps=6", f"output_dir={tmp_path}/parts", "optimizer.schedule=cosine")
    train(tiny.file, 2, "max_steps=3", f"output_dir={tmp_path}/again")
    for name, value in load_file(tmp_path / "again/checkpoints/step_000003/model.safetensors").items():
        assert torch.equal(
            value, load_file(tmp_path / "parts/checkpoints/step_000003/model.safetensors")[name]
        ), name
    assert json.loads((tmp_path / "parts/summary.json").read_text())["step"] == 6
