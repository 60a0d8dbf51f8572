"""scripts/export.py as a person meets it: started as a process, judged by its words and its exit code."""

import os
import subprocess
import sys
from pathlib import Path

from latentae import load_autoencoder
from tests.export.conftest import make_kl

ROOT = Path(__file__).resolve().parents[1]


def test_the_script_is_the_command(tmp_path):
    make_kl().save_pretrained(tmp_path / "run/model")
    out = tmp_path / "vae.safetensors"
    done = subprocess.run(
        [
            *(sys.executable, ROOT / "scripts/export.py", tmp_path / "run"),
            *("--format", "ldm", "--family", "sd1", "--out", out),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "max error" in done.stdout
    assert load_autoencoder(out).config.scaling_factor == 0.7
