"""Runs killed or asked to leave, then continued, against one that was left alone: equal bit by bit."""

import json
import signal

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from latentae.training.run_folder import RunFolder
from tests.processes import fork
from tests.training.conftest import TINY, draw_images
from tests.training.kill_points import POINTS, REQUESTS, train
from tests.training.launch import flatten, log_lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory, alexnet_trunk):
    folder = tmp_path_factory.mktemp("kills")
    draw_images(folder / "images")
    (folder / "tiny.yaml").write_text(TINY.format(folder=folder))
    return folder


def run(folder, name, point=None):
    """The exit code of a run of its own process."""
    arguments = ["max_steps=6", "checkpoint_every=2", "gradient_accumulation_steps=2", "sample_every=6"]
    arguments += ["validate_every=2", "best_metric=validation_lpips", "model.quantizer.type=ema"]
    arguments += [
        "loss.adversarial.lecam={weight: 0.1, decay: 0.5}",
        "discriminator.r1={weight: 1.0, every: 2}",
    ]
    arguments += ["data.holdout=0.3", f"output_dir={folder / name}"]
    child = fork(train, ["--config", str(folder / "tiny.yaml"), *arguments], point)
    child.join(60)
    return child.exitcode


@pytest.fixture(scope="module")
def whole(folder):
    assert run(folder, "whole") == 0
    return folder / "whole"


def checkpoint_of(run):
    """All that the last checkpoint holds, but for the clock."""
    states = {}
    for path in sorted((run / "checkpoints/step_000006").iterdir()):
        if path.suffix == ".safetensors":
            states[path.name] = load_file(path)
        elif path.suffix not in (".json", ".yaml"):
            states[path.name] = torch.load(path, weights_only=False)
    return flatten(states)


def equal(first, second):
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    return first.tobytes() == second.tobytes() if hasattr(first, "tobytes") else first == second


def assert_nothing_is_lost(whole, run):
    """The run has all that the whole one has, and no more."""
    expected, found = checkpoint_of(whole), checkpoint_of(run)
    assert found.keys() == expected.keys()
    assert len(found) > 1000  # weights, averages, moments, codebook, random states
    for key, value in expected.items():
        assert equal(found[key], value), key
    for file in ("model/diffusion_pytorch_model.safetensors", "model/config.json", "samples/step_000006.png"):
        assert (run / file).read_bytes() == (whole / file).read_bytes()
    assert {path.name for path in run.iterdir()} == {path.name for path in whole.iterdir()}
    best, best_of_whole = ((path / "checkpoints/best.json").read_text() for path in (run, whole))
    assert json.loads(best) == json.loads(best_of_whole)


@pytest.mark.parametrize("point", POINTS)
def test_killed(folder, whole, point):
    name = point.replace(" ", "_")
    assert run(folder, name, point) == -signal.SIGKILL
    _, left = POINTS[point]
    assert list((folder / name).glob(left))
    assert not (folder / name / "summary.json").exists()
    assert run(folder, name) == 0
    assert_nothing_is_lost(whole, folder / name)
    assert log_lines(folder / name) == log_lines(whole)
    names = [
        sorted(path.name for path in (root / "checkpoints").iterdir()) for root in (whole, folder / name)
    ]
    assert names[0] == names[1]


@pytest.mark.parametrize("point", REQUESTS)
def test_made_to_leave(folder, whole, point):
    name = point.replace(" ", "_")
    _, step, code = REQUESTS[point]
    assert run(folder, name, point) == code
    assert RunFolder(folder / name).all_checkpoints()[-1].name == f"step_{step:06d}"
    assert not (folder / name / "summary.json").exists()
    assert not (folder / name / "model").exists()
    assert run(folder, name) == 0
    assert_nothing_is_lost(whole, folder / name)
