"""Runs that go on: with their own settings, with others in a branch, and with data that lie elsewhere."""

import json
import shutil
import signal

import pytest
import torch
import yaml

from latentae.config import ConfigError, dump_config, load_config, read_config
from latentae.data import BrokenImageError
from latentae.training import accelerator
from latentae.training.run_folder import RunError, RunFolder
from latentae.training.signals import RunStopped
from latentae.training.trainer import Trainer
from tests.training.conftest import draw_images
from tests.training.test_trainer import poison, weights

FEW = ["max_steps=2", "checkpoint_every=1", "keep_checkpoints=9", "sample_every=100"]
KL = ["model.class=KLVAE", "loss.adversarial=null", "discriminator=null"]


@pytest.fixture
def tiny_kl(tiny):
    def config(*overrides):
        return load_config("kl_vae", ["--config", str(tiny.file), *KL, *overrides])

    return config


def checkpoint(tmp_path, step=1, run="run"):
    return f"resume={tmp_path}/{run}/checkpoints/step_{step:06d}"


def test_a_branch_trains_with_the_optimizers_that_its_config_names(tiny, tmp_path):
    learned = ["loss.reconstruction.type=gaussian"]
    Trainer(tiny(*FEW, *learned)).fit()
    changes = {
        "learning_rate": 2e-3,
        "betas": [0.2, 0.3],
        "weight_decay": 0.25,
        "epsilon": 1e-3,
        "schedule": "wsd",
        "warmup_steps": 1,
        "decay_share": 0.5,
        "final_scale": 0.1,
    }
    new = [
        f"{section}.{key}={value}"
        for section in ("optimizer", "discriminator.optimizer")
        for key, value in changes.items()
    ]
    new += [
        "loss.reconstruction.learning_rate_scale=7",
        f"output_dir={tmp_path}/branch",
        checkpoint(tmp_path),
    ]
    branch = Trainer(tiny(*FEW, *learned, *new))
    assert branch.step == 1
    assert set(changes) | {"type"} == set(type(branch.config.optimizer).model_fields)
    autoencoder, discriminator = branch.networks.learners
    for learner in (autoencoder, discriminator):
        for group in learner.optimizer.param_groups:
            assert group["betas"] == (0.2, 0.3)
            assert group["eps"] == 1e-3
        rate = learner.learning_rate
        assert (rate.peak, rate.warmup_steps, rate.final_scale) == (2e-3, 1, 0.1)
        assert (rate.schedule, rate.decay_share) == ("wsd", 0.5)
    decays = [[g["weight_decay"] for g in x.optimizer.param_groups] for x in (autoencoder, discriminator)]
    assert decays == [[0.25, 0.0], [0.25]]
    assert autoencoder.optimizer.param_groups[1]["lr_scale"] == 7
    # The averages are those of the run that it branched off from.
    assert {int(state["step"]) for state in autoencoder.optimizer.state.values()} == {1}
    branch.fit()
    saved = torch.load(tmp_path / "branch/checkpoints/step_000002/optimizer.bin", weights_only=False)
    assert [group["betas"] for group in saved["param_groups"]] == [(0.2, 0.3)] * 2


def test_the_same_command_continues_a_branch(tiny, tmp_path):
    Trainer(tiny(*FEW)).fit()
    branch = [checkpoint(tmp_path), f"output_dir={tmp_path}/branch", "optimizer.weight_decay=0.1", *FEW]
    Trainer(tiny(*branch, "max_steps=3")).fit()
    assert Trainer(tiny(*branch, "max_steps=5")).step == 3
    with pytest.raises(ConfigError, match=r"holds later ones \(step_000003\)"):
        Trainer(tiny(*branch, checkpoint(tmp_path, 2)))


def test_another_global_batch_takes_effect_in_a_branch(tiny, tmp_path):
    Trainer(tiny(*FEW)).fit()
    with pytest.raises(ValueError, match=r"branch off: resume=.*step_000002 output_dir="):
        Trainer(tiny(*FEW, "max_steps=3", "batch_size=3"))
    branch = Trainer(tiny(*FEW, "batch_size=3", checkpoint(tmp_path), f"output_dir={tmp_path}/branch"))
    branch.fit()
    assert branch.step == 2


def test_refusals_name_the_way_on(tiny, tmp_path):
    Trainer(tiny(*FEW)).fit()
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(ConfigError) as caught:
        folder.check(tiny("optimizer.weight_decay=0.5"))
    assert "optimizer.weight_decay: 0.0 → 0.5" in str(caught.value)
    assert f"{checkpoint(tmp_path, 2)} output_dir=" in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        folder.check(tiny("model.latent_channels=6"))
    assert "model.latent_channels: 4 → 6" in str(caught.value)
    assert f"model.pretrained={tmp_path}/run" in str(caught.value)


def test_a_branch_refuses_what_its_checkpoint_has_settled(tiny, tmp_path):
    Trainer(tiny(*FEW)).fit()
    shutil.copytree(tmp_path / "run/checkpoints/step_000001", tmp_path / "elsewhere/step_000001")
    change = ["model.quantizer.init=uniform", f"output_dir={tmp_path}/branch"]
    # A checkpoint knows its config by itself, but not where its run's model is.
    for place, model in {"run/checkpoints": tmp_path / "run", "elsewhere": "FOLDER_OF_ITS_RUN"}.items():
        new = tiny(*change, f"resume={tmp_path}/{place}/step_000001")
        with pytest.raises(ConfigError, match=r"model\.quantizer\.init: data → uniform") as caught:
            RunFolder(tmp_path / "branch").check(new)
        assert f"model.pretrained={model}" in str(caught.value)
    assert not (tmp_path / "branch").exists()


def test_the_precision_of_the_launcher_is_recorded_and_kept(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    trainer = Trainer(tiny(*FEW))
    assert trainer.accelerator.mixed_precision == "bf16"
    trainer.fit()
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["mixed_precision"] == "bf16"
    assert Trainer(tiny(*FEW, "max_steps=3")).step == 2
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    with pytest.raises(ConfigError, match=r"mixed_precision: bf16 → 'no'"):
        Trainer(tiny(*FEW, "max_steps=3"))


@pytest.mark.parametrize(("native", "precision"), [(True, "bf16"), (False, "no")])
def test_auto_is_recorded_as_what_the_device_computes_and_kept_elsewhere(
    tiny, tmp_path, monkeypatch, native, precision
):
    monkeypatch.setattr(accelerator, "has_native_bfloat16", lambda: native)
    trainer = Trainer(tiny(*FEW, "mixed_precision=auto"))
    assert trainer.accelerator.mixed_precision == precision
    trainer.fit()
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["mixed_precision"] == precision
    # On another machine the run goes on as it began, whatever that machine would choose.
    monkeypatch.setattr(accelerator, "has_native_bfloat16", lambda: not native)
    continued = Trainer(tiny(*FEW, "max_steps=3", "mixed_precision=auto"))
    assert (continued.step, continued.accelerator.mixed_precision) == (2, precision)


def test_auto_chooses_anew_where_nothing_was_learned(tiny, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text(dump_config(tiny(*FEW, "mixed_precision=bf16")))
    monkeypatch.setattr(accelerator, "has_native_bfloat16", lambda: False)
    assert Trainer(tiny(*FEW, "mixed_precision=auto")).config.mixed_precision == "no"


def stop_after_a_step(trainer):
    """Has a signal come in the next step."""
    step = trainer.optimizer_step

    def struck(*arguments):
        step(*arguments)
        signal.raise_signal(signal.SIGTERM)

    trainer.optimizer_step = struck


def test_a_diverging_run_that_is_often_stopped_is_given_up(tiny, monkeypatch, capsys):
    monkeypatch.delenv("ACCELERATE_DYNAMO_BACKEND", raising=False)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    for step in (1, 2):
        trainer = Trainer(tiny("guard.max_consecutive=3", "log_every=100", "checkpoint_every=100"))
        poison(trainer, range(100))
        stop_after_a_step(trainer)
        with pytest.raises(RunStopped, match=f"saved at step {step}"):
            trainer.fit()
        assert f"step {step} skipped" in capsys.readouterr().out
    trainer = Trainer(tiny("guard.max_consecutive=3", "log_every=100", "checkpoint_every=100"))
    assert trainer.guard.state_dict() == {"skipped": 2, "consecutive": 2}
    poison(trainer, range(100))
    stop_after_a_step(trainer)
    with pytest.raises(RunError, match="3 updates in a row were not made"):
        trainer.fit()


@pytest.mark.parametrize(
    "quantizer", ["{type: fsq, levels: [3, 3, 3, 3]}", "{type: vector, num_codes: 8}"], ids=["fsq", "vector"]
)
def test_a_fault_in_the_first_step_leaves_nothing_behind(tiny, tmp_path, quantizer):
    """The start of the codebook moves the latents: done again on a saved model, it would move them twice."""
    arguments = [*FEW, f"model.quantizer={quantizer}"]
    Trainer(tiny(*arguments, f"output_dir={tmp_path}/whole")).fit()
    trainer = Trainer(tiny(*arguments))

    def broken(*_):
        raise BrokenImageError("x.png: broken")

    trainer.optimizer_step = broken
    with pytest.raises(RunError, match="no step was made yet; the same command starts again"):
        trainer.fit()
    assert list((tmp_path / "run/checkpoints").iterdir()) == []
    Trainer(tiny(*arguments)).fit()
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(value, weights(tmp_path / "run")[name]), name


def test_weight_decay_leaves_a_pinned_posterior_alone(tiny_kl, tmp_path):
    trainer = Trainer(tiny_kl(*FEW, "optimizer.weight_decay=10", "optimizer.learning_rate=0.01"))
    trainer.fit()
    for model in (trainer.networks.autoencoder, trainer.networks.ema.model):
        weight, bias = model.quant_conv.weight, model.quant_conv.bias
        assert torch.equal(bias[4:], torch.full((4,), -30.0))
        assert not weight[4:].any()
        assert weight[:4].all()


def test_a_branch_without_a_kl_term_pins_what_was_learned(tiny_kl, tmp_path):
    Trainer(tiny_kl(*FEW, "loss.kl.weight=1.0e-4")).fit()
    branch = Trainer(tiny_kl(*FEW, checkpoint(tmp_path), f"output_dir={tmp_path}/branch"))
    branch.fit()
    assert torch.equal(branch.networks.autoencoder.quant_conv.bias[4:], torch.full((4,), -30.0))


def test_data_that_moved_or_are_spelled_otherwise(tiny, tmp_path, monkeypatch, capsys):
    Trainer(tiny(*FEW)).fit()
    (tmp_path / "images").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    for name in (f"{tmp_path}/moved", "moved", "./moved/"):
        assert Trainer(tiny(*FEW, "max_steps=3", f"data.name={name}", "data.split=train")).step == 2
    assert read_config(tmp_path / "run/config.yaml").data.name == "./moved/"
    draw_images(tmp_path / "others", 11)
    with pytest.raises(ConfigError) as caught:
        Trainer(tiny(*FEW, "max_steps=3", "data.name=others"))
    assert "data.name: ./moved/ → others" in str(caught.value)
    assert f"{checkpoint(tmp_path, 2)} output_dir=" in str(caught.value)
    assert "the data differ" not in capsys.readouterr().out
    (tmp_path / "moved/005.png").unlink()
    assert Trainer(tiny(*FEW, "max_steps=3", "data.name=./moved/")).step == 2
    assert "the data differ from those that this run began with: " in capsys.readouterr().out


def test_a_run_that_has_recorded_no_data_compares_paths(tiny, tmp_path, monkeypatch):
    Trainer(tiny(*FEW)).fit()
    (tmp_path / "run/data.json").unlink()
    draw_images(tmp_path / "others")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"data\.name: .*images → others"):
        Trainer(tiny(*FEW, "max_steps=3", "data.name=others"))
    assert Trainer(tiny(*FEW, "max_steps=3", "data.name=images")).step == 2
    assert json.loads((tmp_path / "run/data.json").read_text())["training"]["images"] == 9


@pytest.mark.parametrize("name", ["a" * 300, f"new/{'é' * 200}/run", "file/run"])
def test_an_output_dir_that_cannot_be(tiny, tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError) as caught:
        RunFolder(tmp_path / name).check(tiny())
    assert str(caught.value).startswith("output_dir is ")
    assert "choose another one" in str(caught.value)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("text", ["", "[]", '{"training": {"images": 9}}'])
def test_a_damaged_record_of_the_data_is_named(tiny, tmp_path, text):
    Trainer(tiny(*FEW)).fit()
    (tmp_path / "run/data.json").write_text(text)
    with pytest.raises(
        ConfigError, match=r"data\.json, which says what data the run has read, cannot be read"
    ):
        Trainer(tiny(*FEW, "max_steps=3"))
    (tmp_path / "run/data.json").unlink()
    assert Trainer(tiny(*FEW, "max_steps=3")).step == 2
