"""Runs with every stabiliser of the adversarial game: two ranks equal one, resumed equals uninterrupted."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import Dinov2Config, Dinov2Model

from latentae import build
from latentae.training.trainer import Trainer
from tests.processes import launch

# The discriminator learns at steps 1, 3 and 5; its slope is penalised at the first and the last of these.
EVERYTHING = [
    "max_steps=6",
    "checkpoint_every=3",
    "log_every=1",
    "model.quantizer.revive_after=null",
    "loss.adversarial.type=non_saturating",
    "loss.adversarial.ramp_steps=3",
    "loss.adversarial.min_adaptive_weight=0.01",
    "loss.adversarial.lecam={weight: 0.3, decay: 0.7}",
    "discriminator.update_every=2",
    "discriminator.augment=[color, translation, cutout]",
    "discriminator.r1={weight: 1.0, every: 2}",
]
ALEX = ["discriminator.type=frozen_features", "discriminator.network=alex"]


@pytest.fixture(params=["patchgan", "wavelet", "frozen_features"])
def discriminator(request, tmp_path):
    """The overrides of each type: the second under Muon, the last one on a small random transformer."""
    words = [f"discriminator.type={request.param}"]
    if request.param == "wavelet":
        words += ["optimizer.type=muon", "discriminator.optimizer.type=muon"]
    if request.param != "frozen_features":
        return words
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    Dinov2Model(Dinov2Config(**sizes, image_size=8, patch_size=4)).save_pretrained(tmp_path / "transformer")
    return [*words, f"discriminator.network={tmp_path}/transformer", "discriminator.head_channels=16"]


def state(run):
    """The discriminator's weights, and the averages of its logits."""
    folder = run / "checkpoints/step_000006"
    objects = [torch.load(path) for path in sorted(folder.glob("custom_checkpoint_*.pkl"))]
    (lecam,) = [values for values in objects if "averages" in values]
    lecam.pop("trunk_sha256", None)
    return load_file(folder / "model.safetensors"), load_file(folder / "model_1.safetensors"), lecam


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_two_ranks_equal_one(tiny, tmp_path, discriminator):
    # With seed 0 one latent is so close to the middle between two codes that rounding decides for either.
    shared = [*EVERYTHING, *discriminator, "seed=1", "gradient_accumulation_steps=2"]
    # Adam divides by the gradient's size, which turns the rounding of a tiny one into a whole step.
    shared += ["optimizer.epsilon=1.0e-3", "discriminator.optimizer.epsilon=1.0e-3"]
    Trainer(tiny(*shared, "batch_size=4", f"output_dir={tmp_path}/one")).fit()
    shared += ["batch_size=2", f"output_dir={tmp_path}/two"]
    launch("scripts/train_vqgan.py", 2, "--config", str(tiny.file), *shared)

    for one, two in zip(state(tmp_path / "one"), state(tmp_path / "two"), strict=True):
        assert one.keys() == two.keys()
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5, msg=name)
    one, two = lines(tmp_path / "one"), lines(tmp_path / "two")
    assert ["r1" in line for line in one] == [False, True, False, False, False, True]
    assert [line.get("lecam", -1) > 0 for line in one] == [False, False, False, True, False, True]
    for ours, theirs in zip(two, one, strict=True):
        assert ours.keys() == theirs.keys()
        for key in ours.keys() - {"images_per_second"}:
            assert ours[key] == pytest.approx(theirs[key], rel=1e-3, abs=1e-5), key


def test_a_resumed_run_equals_an_uninterrupted_one(tiny, tmp_path, discriminator):
    changes = [*EVERYTHING, *discriminator, "optimizer.schedule=constant"]
    Trainer(tiny(*changes, f"output_dir={tmp_path}/whole")).fit()
    Trainer(tiny(*changes, f"output_dir={tmp_path}/parts", "max_steps=3")).fit()
    Trainer(tiny(*changes, f"output_dir={tmp_path}/parts")).fit()
    for whole, parts in zip(state(tmp_path / "whole"), state(tmp_path / "parts"), strict=True):
        assert whole.keys() == parts.keys()
        for name, value in whole.items():
            assert torch.equal(value, parts[name]), name
    assert state(tmp_path / "parts")[2]["started"]


def test_a_frozen_network_is_not_saved_but_its_hash_is(tiny, tmp_path, alexnet_trunk, monkeypatch):
    changes = [*ALEX, "max_steps=3"]
    Trainer(tiny(*changes)).fit()
    checkpoint = tmp_path / "run/checkpoints/step_000003"
    assert all(name.startswith("heads.") for name in load_file(checkpoint / "model_1.safetensors"))
    assert not any(
        "trunk" in name for name in load_file(next((tmp_path / "run/model").glob("*.safetensors")))
    )
    other = {name: value + 1 for name, value in alexnet_trunk.items()}
    monkeypatch.setattr(build, "load_trunk", lambda name: other)
    with pytest.raises(ValueError, match=r"discriminator\.network has other weights .* give the weights"):
        Trainer(tiny(*changes, "max_steps=4"))


def test_every_discriminator_trains_in_bfloat16(tiny, tmp_path, discriminator):
    changes = [
        "max_steps=3",
        "mixed_precision=bf16",
        "log_every=1",
        "discriminator.r1={weight: 1.0, every: 2}",
    ]
    Trainer(tiny(*changes, *discriminator)).fit()
    last = lines(tmp_path / "run")[-1]
    assert last["discriminator"] > 0
    assert last["adaptive_factor"] > 0


def test_the_run_says_what_the_watch_finds(tiny, tmp_path, capsys, monkeypatch):
    seen = []

    class Watch:
        def see(self, means):
            seen.append(means)
            return "the discriminator is asleep" if len(seen) == 2 else None

    monkeypatch.setattr("latentae.training.trainer.AdversaryWatch", Watch)
    Trainer(tiny("max_steps=3", "log_every=1", f"output_dir={tmp_path}/run")).fit()
    assert "".join(capsys.readouterr()).count("the discriminator is asleep") == 1
    assert ["logit_gap" in means for means in seen] == [False, True, True]
