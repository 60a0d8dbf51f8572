"""The recipes of CONTRIBUTING.md, applied to a copy of the package and run there."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from latentae import KLVAE
from tests.import_rules import import_violations
from tests.training.conftest import draw_images

ROOT = Path(__file__).resolve().parents[1]
RECIPES = dict(
    re.findall(
        r"### How to add an? ([a-z ]+)\n(.*?)(?=\n##)",
        (ROOT / "CONTRIBUTING.md").read_text(),
        flags=re.DOTALL,
    )
)
EDIT = re.compile(r"^# ((?:latentae|tests)/[\w/]+\.py)(?:, (after|before|replace): (.*))?$")
TINY = """
output_dir: run
max_steps: 2
batch_size: 2
cpu_threads: 1
trackers: []
model:
  class: VQVAE
  block_out_channels: [8, 8]
  layers_per_block: 1
  norm_num_groups: 4
  latent_channels: 4
  quantizer: {type: manhattan, num_codes: 8}
loss:
  reconstruction: {type: huber, delta: 0.2}
optimizer: {type: adamw, learning_rate: 1.0e-3}
data: {name: images, image_size: 32}
"""


def apply(recipe: str, root: Path) -> None:
    """Carries out the edits of a recipe's code blocks below ``root``."""
    for block in re.findall(r"```python\n(.*?)```", recipe, flags=re.DOTALL):
        edits: list[tuple[re.Match[str], list[str]]] = []
        for line in block.splitlines():
            if marker := EDIT.match(line):
                edits.append((marker, []))
            else:
                edits[-1][1].append(line)
        for marker, lines in edits:
            edit(root / marker[1], marker[2], marker[3], "\n".join(lines))


def edit(path: Path, kind: str | None, anchor: str, text: str) -> None:
    if kind is None:
        assert not path.exists(), path
        path.write_text(text + "\n")
        return
    code = path.read_text()
    if kind == "replace":
        assert code.count(anchor) == 1, f"{path} has {code.count(anchor)} times {anchor!r}"
        path.write_text(code.replace(anchor, text))
        return
    found = re.findall(rf"^{re.escape(anchor)}.*\n", code, flags=re.MULTILINE)
    assert len(found) == 1, f"{path} has {len(found)} lines that start with {anchor!r}"
    both = f"{found[0]}{text}\n" if kind == "after" else f"{text}\n{found[0]}"
    path.write_text(code.replace(found[0], both))


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package and its tests with all recipes applied, beside a folder of images."""
    root = tmp_path_factory.mktemp("copy")
    for folder in ("latentae", "configs", "tests", "benchmarks"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__", "results"))
    shutil.copy(ROOT / "pyproject.toml", root)
    for recipe in RECIPES.values():
        apply(recipe, root)
    draw_images(root / "images", count=6)
    (root / "tiny.yaml").write_text(TINY)
    return root


# What is tried on the copy, one after the other in one process: it imports torch and the package only once.
PARTS = {
    "train": """
from latentae import cli
assert cli.main(["train", "vq_vae", "--config", "tiny.yaml"]) == 0
""",
    "evaluate": """
from latentae import cli
options = ["--data=images", "--out=report", "--protocol=native", "--no-features", "--cycle-images=0"]
assert cli.main(["evaluate", "tiny=run", *options]) == 0
""",
    "discriminator": """
import torch
from latentae import build
from latentae.config import load_config
config = load_config("vqgan", ["discriminator.type=pixels", "discriminator.base_channels=8"])
discriminator = build.build_discriminator(config)
assert discriminator(torch.zeros(2, 3, 4, 6)).shape == (2, 1, 4, 6)
assert discriminator.layers[0].out_channels == 8
""",
    "file format": """
from latentae import load_autoencoder
opened = load_autoencoder("vae.npz", norm_num_groups=4).state_dict()
for name, tensor in load_autoencoder("same").state_dict().items():
    assert tensor.equal(opened[name]), name
assert len(opened) > 50
""",
    "tests": """
import pytest
files = ["quantizers/test_quantizer.py", "losses/test_huber.py", "evaluation/test_largest_error.py"]
options = ["-q", "-p", "no:cacheprovider", "-k", "manhattan or huber or largest"]
assert pytest.main([*options, *(f"tests/{file}" for file in files)]) == 0
""",
}
DRIVER = """
import json, sys, traceback
outcomes = {}
for name, code in json.loads(sys.argv[1]).items():
    try:
        exec(code, {})
        outcomes[name] = "passed"
    except BaseException:
        outcomes[name] = traceback.format_exc()
    with open("outcomes.json", "w") as file:
        json.dump(outcomes, file)
"""


def run(copy: Path, *words: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, *words], cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.fixture(scope="module")
def outcomes(copy: Path) -> dict[str, str]:
    """For each of PARTS "passed", or a traceback."""
    torch.manual_seed(0)
    model = KLVAE(block_out_channels=(8,), norm_num_groups=4)
    np.savez(copy / "vae.npz", **{name: tensor.numpy() for name, tensor in model.state_dict().items()})
    model.save_pretrained(copy / "same")
    run(copy, "-c", DRIVER, json.dumps(PARTS))
    return json.loads((copy / "outcomes.json").read_text())


def test_recipes_are_short() -> None:
    assert set(RECIPES) == {"quantizer", "loss", "discriminator", "metric", "file format"}
    for name, recipe in RECIPES.items():
        assert len([line for line in recipe.splitlines() if line.strip()]) < 30, name


def test_recipes_keep_the_rules_for_imports_and_style(copy: Path) -> None:
    assert import_violations(copy) == []
    run(copy, "-m", "ruff", "format", "--quiet", "latentae", "tests")
    run(copy, "-m", "ruff", "check", "latentae", "tests")


def test_a_new_quantizer_and_loss_are_trained(copy: Path, outcomes: dict[str, str]) -> None:
    assert outcomes["train"] == "passed"
    lines = (copy / "run/metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["reconstruction"] > 0
    config = json.loads((copy / "run/model/config.json").read_text())
    assert config["quantizer"]["type"] == "manhattan"


def test_a_new_metric_is_reported(copy: Path, outcomes: dict[str, str]) -> None:
    assert outcomes["evaluate"] == "passed"
    metrics = json.loads((copy / "report/results.json").read_text())["models"]["tiny"]
    assert 0 < metrics["largest_error"]["value"] <= 2
    assert "largest error" in (copy / "report/results.md").read_text()


def test_a_new_discriminator_is_built(outcomes: dict[str, str]) -> None:
    assert outcomes["discriminator"] == "passed"


def test_a_file_of_a_new_format_opens(outcomes: dict[str, str]) -> None:
    assert outcomes["file format"] == "passed"


def test_the_tests_of_the_recipes_pass(outcomes: dict[str, str]) -> None:
    assert outcomes["tests"] == "passed"
