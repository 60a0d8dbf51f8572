"""The command line as a person meets it: started as a process, judged by what it prints and its exit code."""

import json
import os
import subprocess
import sys

import pytest

from tests.processes import ROOT, run_script
from tests.training.conftest import TINY, draw_images

SCRIPT = str(ROOT / "scripts/train_vqgan.py")


def run(*command, **environment):
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["data.image_szie=64"], ["data.image_szie", "data.image_size"]),
        (["batch_size=many"], ["batch_size", "many"]),
        (["data.image_size=66"], ["data.image_size", "66", "64", "68"]),
        (["model.norm_num_groups=7"], ["norm_num_groups", "7", "32"]),
        (["model.quantizer.num_codes=0"], ["model.quantizer.num_codes", "0"]),
        (["--max-steps", "5"], ["max_steps="]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml", "quickstart"]),
    ],
)
def test_a_mistake_is_answered_in_words_before_torch_is_imported(arguments, says):
    # With torch unimportable, a late answer would be another error.
    result = run("-X", "importtime", SCRIPT, *arguments, PYTHONPROFILEIMPORTTIME="1")
    imported = {
        line.rsplit("|", 1)[-1].strip() for line in result.stderr.splitlines() if "import time:" in line
    }
    errors = "\n".join(line for line in result.stderr.splitlines() if "import time:" not in line)
    assert result.returncode == 2
    assert "pydantic" in imported
    assert "torch" not in imported
    assert "Traceback" not in errors
    for word in says:
        assert word in errors


def test_help_lists_keys_with_their_meaning():
    result = run(SCRIPT, "--help")
    assert result.returncode == 0
    for words in ("data.image_size", "model.quantizer.num_codes", "Optimizer steps", "quickstart"):
        assert words in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "usage: latentae"),
        (["--help"], 0, "usage: latentae"),
        (["train", "--help"], 0, "kl_vae | vq_vae | vqgan"),
        (["paint"], 2, "unknown command 'paint'"),
        (["train"], 2, "needs a family"),
        (["train", "gan"], 2, "got gan"),
        (["train", "vqgan", "max_step=1"], 2, "max_steps"),
    ],
)
def test_the_latentae_command(arguments, code, says):
    result = run("-m", "latentae.cli", *arguments)
    assert result.returncode == code
    assert says in result.stdout + result.stderr
    assert "Traceback" not in result.stderr


@pytest.fixture
def tiny_file(tmp_path, alexnet_trunk):
    draw_images(tmp_path / "images")
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY.format(folder=tmp_path))
    return file


def test_train_then_say_that_it_is_done(tiny_file, tmp_path):
    arguments = [SCRIPT, "--config", str(tiny_file), "max_steps=2", 'trackers=["tensorboard"]']
    first = run(*arguments)
    assert first.returncode == 0, first.stderr
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert f"{summary['psnr']:.2f} dB" in first.stdout + first.stderr
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}

    second = run_script(*arguments)
    assert second.returncode == 0
    assert "is complete" in second.stdout
    assert f"{summary['psnr']:.2f} dB" in second.stdout
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


def test_a_dry_run_tells_and_leaves_no_run(tiny_file, tmp_path):
    result = run_script(SCRIPT, "--dry-run", "--config", str(tiny_file))
    assert result.returncode == 0, result.stderr
    for words in ("parameters", "latents", "6 steps of 2 images", "checkpoint", "memory", "run-dry-run.png"):
        assert words in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "run-dry-run.png", "tiny.yaml"]
    missing = run_script(SCRIPT, "data.name=nowhere/at/all", "--dry-run")
    assert missing.returncode == 2
    assert "does not exist" in missing.stderr
    assert "Traceback" not in missing.stderr


def test_bad_data_is_one_sentence(tiny_file, tmp_path):
    result = run_script(SCRIPT, "--config", str(tiny_file), f"data.name={tmp_path}/nowhere")
    assert result.returncode == 2
    assert "does not exist" in result.stderr
    assert "Traceback" not in result.stderr


def test_no_weights_to_be_had_is_one_sentence(tiny_file, tmp_path):
    (tmp_path / "offline.py").write_text(
        "import subprocess, sys, urllib.request\n"
        "def refuse(*a, **k): raise OSError('the network is switched off')\n"
        "subprocess.run = urllib.request.urlopen = refuse\n"
        "from latentae.cli import train\n"
        "sys.exit(train('vqgan'))\n"
    )
    caches = {"LATENTAE_CACHE": tmp_path / "cache", "TORCH_HOME": tmp_path / "torch"}
    result = run_script(tmp_path / "offline.py", "--config", str(tiny_file), **caches)
    assert result.returncode == 2
    assert "LATENTAE_CACHE" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()
