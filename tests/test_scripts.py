"""The files in scripts/, as a person or a launcher starts them: each is a command of `latentae`."""

import subprocess
import sys

import pytest

from tests.processes import ROOT, environment

MISTAKES = {
    "encode_dataset.py": (["model"], "required: --data, --out; `latentae encode --help`"),
    "evaluate.py": (["model"], "required: --data, --out; `latentae evaluate --help`"),
    "export.py": (["run"], "required: --format, --out; `latentae export --help`"),
    "latent_stats.py": (["model"], "required: --data; `latentae stats --help`"),
    "train_kl_vae.py": (["model.quantizer={}"], "model.quantizer"),
    "train_vq_vae.py": (["loss.adversarial={}"], "loss.adversarial"),
    "train_vqgan.py": (["model.quantizer.type=x"], "model.quantizer"),
}


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "scripts").glob("*.py")))
def test_a_script_is_the_command(script):
    arguments, message = MISTAKES[script]
    command = [sys.executable, f"scripts/{script}", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment())
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
