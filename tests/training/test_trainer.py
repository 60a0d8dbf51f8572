import json
import math
import re

import pytest
import torch
from diffusers import AutoencoderKL, VQModel
from PIL import Image
from safetensors.torch import load_file

from latentae import VQVAE, load_autoencoder
from latentae.config import ConfigError, dump_config, load_config, read_config
from latentae.training.launcher import apply_launcher_settings
from latentae.training.run_folder import RunError
from latentae.training.trainer import Trainer


def weights(folder):
    return load_file(folder / "model/diffusion_pytorch_model.safetensors")


def test_a_run_from_start_to_end(tiny, tmp_path, capsys):
    config = tiny()
    summary = Trainer(config).fit()
    run = tmp_path / "run"

    # With the precision that the launcher decided.
    assert read_config(run / "config.yaml") == apply_launcher_settings(config)
    assert json.loads((run / "summary.json").read_text()) == summary
    assert summary["step"] == 6
    assert {"psnr", "ssim", "lpips", "codebook_usage", "seconds"} <= set(summary)
    assert 0 < summary["codebook_usage"] <= 1
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert "generator" not in lines[0]
    assert lines[1]["adversarial_weight"] == pytest.approx(0.5 * lines[1]["adaptive_factor"], rel=1e-4)
    assert {"images_per_second", "codebook_perplexity", "autoencoder_gradient_norm"} <= set(lines[0])
    # Nine images, two a step: the fifth step ends an epoch, of which the last line tells.
    assert [line.get("epoch_codebook_images") for line in lines] == [None, None, 10]
    assert sum(lines[2]["epoch_codebook_deciles"]) == pytest.approx(1, abs=1e-4)
    pictures = ["codes_000003.png", "codes_000006.png", "step_000003.png", "step_000006.png"]
    assert sorted(path.name for path in (run / "samples").iterdir()) == [*pictures, "whole_000006.png"]
    with Image.open(run / "samples/step_000006.png") as grid:
        assert grid.height == 2 * (32 + 4)
    with Image.open(run / "samples/whole_000006.png") as whole:  # one image is held out
        assert whole.size == (2 * (48 + 4), 48 + 4)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step_000003", "step_000006"]
    stock = VQModel.from_pretrained(run / "model")
    assert stock.config.scaling_factor == pytest.approx(summary["scaling_factor"])
    printed = capsys.readouterr()
    assert f"{summary['psnr']:.2f} dB" in printed.out + printed.err


def test_the_exported_model_is_the_average(tiny, tmp_path):
    trainer = Trainer(tiny())
    trainer.fit()
    stock = VQModel.from_pretrained(tmp_path / "run/model")
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    torch.testing.assert_close(
        stock(images).sample, trainer.networks.ema.model(images).sample, rtol=1e-5, atol=1e-5
    )
    assert not torch.equal(stock.encoder.conv_in.weight, trainer.networks.autoencoder.encoder.conv_in.weight)


@pytest.mark.parametrize("quantizer", ["vector", "ema"])
def test_resumed_equals_uninterrupted(tiny, tmp_path, quantizer):
    kind = [f"model.quantizer.type={quantizer}", "gradient_accumulation_steps=2"]
    Trainer(tiny(*kind, f"output_dir={tmp_path}/whole")).fit()

    class KilledError(Exception):
        pass

    interrupted = Trainer(tiny(*kind))
    optimizer_step = interrupted.optimizer_step

    def step_until_killed(*arguments):
        if interrupted.step == 5:
            raise KilledError
        return optimizer_step(*arguments)

    interrupted.optimizer_step = step_until_killed
    with pytest.raises(KilledError):
        interrupted.fit()
    continued = Trainer(tiny(*kind))
    assert continued.step == 3
    continued.fit()

    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(value, weights(tmp_path / "run")[name]), name
    whole, parts = ((tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "run"))
    for line, other in zip(whole, parts, strict=True):  # that of step 4 is over one step before the kill
        ours, theirs = json.loads(line), json.loads(other)
        assert ours.pop("images_per_second") > 0
        theirs.pop("images_per_second")
        assert ours == theirs


def test_a_longer_run_continues_a_finished_one(tiny, tmp_path):
    Trainer(tiny()).fit()
    longer = Trainer(tiny("max_steps=8"))
    assert longer.step == 6
    assert longer.fit()["step"] == 8


def test_settings_that_were_learned_with_cannot_change(tiny, tmp_path):
    Trainer(tiny("max_steps=3")).fit()
    before = weights(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"data\.image_size: 32 → 64"):
        Trainer(tiny("max_steps=3", "data.image_size=64"))
    with pytest.raises(ConfigError, match="resume=never would overwrite it"):
        Trainer(tiny("max_steps=3", "resume=never"))
    assert all(torch.equal(value, before[name]) for name, value in weights(tmp_path / "run").items())


def test_a_folder_with_something_else_in_it(tiny, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="holds files but no run"):
        Trainer(tiny())
    assert (tmp_path / "run/thesis.tex").read_text() == "years of work"


def test_an_output_that_is_a_file(tiny, tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(ConfigError, match=r"output_dir is .*run, which is a file"):
        Trainer(tiny())


def test_a_failed_start_leaves_no_run_behind(tiny, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no image in the folder"):
        Trainer(tiny(f"data.name={tmp_path}/empty"))
    assert not (tmp_path / "run").exists()
    Trainer(tiny("max_steps=1")).fit()


def test_broken_images_are_named_and_skipped(tiny, tmp_path, capsys):
    (tmp_path / "images/004.png").write_bytes(b"")
    (tmp_path / "images/005.png").write_bytes((tmp_path / "images/006.png").read_bytes()[:200])
    Trainer(tiny("max_steps=1")).fit()
    printed = capsys.readouterr().out
    assert "2 images cannot be read and are skipped" in printed
    assert "004.png" in printed
    assert "005.png" in printed


def test_too_many_broken_images(tiny, tmp_path):
    for number in (1, 2, 4):
        (tmp_path / f"images/{number:03d}.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"3 images cannot be read, and data\.max_broken is 2"):
        Trainer(tiny("data.max_broken=2"))


def test_images_that_break_during_the_run_end_it_with_a_checkpoint(tiny, tmp_path):
    trainer = Trainer(tiny("data.max_broken=1", "data.cache_megabytes=0", "data.holdout=0.2"))
    for path in sorted((tmp_path / "images").iterdir())[1:]:
        path.write_bytes(b"no image")
    with pytest.raises((RunError, ValueError), match=r"cannot be (read|decoded)"):
        trainer.fit()


def test_a_full_disk_keeps_the_last_checkpoint(tiny, tmp_path, monkeypatch):
    trainer = Trainer(tiny())
    save_state = trainer.accelerator.save_state

    def save_until_full(folder):
        if trainer.step > 3:
            raise OSError(28, "No space left on device")
        return save_state(folder)

    monkeypatch.setattr(trainer.accelerator, "save_state", save_until_full)
    with pytest.raises(RunError, match="No space left on device"):
        trainer.fit()
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step_000003"]
    assert Trainer(tiny()).step == 3


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tiny, tmp_path, capsys):
    Trainer(tiny()).fit()
    (tmp_path / "run/checkpoints/step_000006/model.safetensors").write_bytes(b"damaged")
    assert Trainer(tiny("max_steps=8")).step == 3
    assert "step_000006 is damaged (model.safetensors has 7 bytes of" in capsys.readouterr().out
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2]
    (tmp_path / "run/checkpoints/step_000003/manifest.json").unlink()
    with pytest.raises(ValueError, match=r"a damaged checkpoint: manifest\.json"):
        Trainer(tiny("max_steps=8", f"resume={tmp_path}/run/checkpoints/step_000003"))


def test_another_global_batch_is_refused(tiny):
    Trainer(tiny("max_steps=3")).fit()
    with pytest.raises(ValueError, match="batch_size"):
        Trainer(tiny("max_steps=6", "batch_size=3"))


@pytest.mark.parametrize("channels", [1, 4])
def test_grey_and_rgba(tiny, tmp_path, channels):
    Trainer(tiny("max_steps=1", f"model.in_channels={channels}")).fit()
    assert VQModel.from_pretrained(tmp_path / "run/model").config.out_channels == channels


def test_crops_that_are_not_square(tiny, tmp_path):
    Trainer(tiny("max_steps=1", "data.image_size=[32, 40]")).fit()
    with Image.open(tmp_path / "run/samples/step_000001.png") as grid:
        assert grid.height == 2 * (32 + 4)
        assert grid.width % (40 + 4) == 0


def test_a_tracker_that_is_not_installed(tiny):
    with pytest.raises(ValueError, match="pip install wandb"):
        Trainer(tiny('trackers=["wandb"]'))


def test_bf16(tiny):
    trainer = Trainer(tiny("mixed_precision=bf16", "max_steps=3"))
    assert trainer.networks.step.objective.perceptual.precision == "bfloat16"
    assert trainer.validation_lpips.precision == "float32"
    assert 0 < trainer.fit()["psnr"] < 60


def test_config_round_trip(tiny, tmp_path):
    config = tiny()
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert read_config(tmp_path / "again.yaml") == config


KL = ["model.class=KLVAE", "loss.adversarial=null", "discriminator=null"]


@pytest.fixture
def tiny_kl(tiny, tmp_path):
    def config(*overrides):
        return load_config("kl_vae", ["--config", str(tiny.file), *KL, *overrides])

    return config


def test_a_kl_vae(tiny_kl, tmp_path):
    summary = Trainer(tiny_kl("loss.kl.weight=1.0e-4")).fit()
    assert summary["codebook_usage"] is None
    line = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert line["kl"] > 0
    assert line["loss"] == pytest.approx(
        line["reconstruction"] + 0.5 * line["perceptual"] + line["kl"], rel=1e-4
    )
    assert AutoencoderKL.from_pretrained(tmp_path / "run/model").config.latent_channels == 4


def test_a_plain_autoencoder_decodes_the_mode(tiny_kl, tmp_path):
    trainer = Trainer(tiny_kl())
    assert trainer.networks.step.latents_shape is None
    trainer.fit()
    posterior = (
        AutoencoderKL.from_pretrained(tmp_path / "run/model").encode(torch.rand(1, 3, 32, 32)).latent_dist
    )
    assert posterior.std.max() < 1e-5
    assert "kl" not in json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])


def test_the_backbone_of_2017(tiny, tmp_path):
    changes = ["model.class=VQVAE", "model.backbone='2017'", "loss.adversarial=null", "discriminator=null"]
    Trainer(load_config("vq_vae", ["--config", str(tiny.file), *changes, "max_steps=2"])).fit()
    model = load_autoencoder(tmp_path / "run/model")
    assert type(model) is VQVAE
    assert model.config.backbone == "2017"


def test_a_kl_vae_resumes(tiny_kl, tmp_path):
    weight = "loss.kl.weight=1.0e-4"
    for run, steps in (("constant", [6]), ("halves", [3, 6])):
        for count in steps:
            constant = [f"output_dir={tmp_path}/{run}", f"max_steps={count}", "optimizer.schedule=constant"]
            Trainer(tiny_kl(weight, *constant)).fit()
    for name, value in weights(tmp_path / "constant").items():
        assert torch.equal(value, weights(tmp_path / "halves")[name]), name


def poison(trainer, steps):
    """Makes the reconstruction loss NaN in the given optimizer steps (counted from 1)."""
    loss = trainer.networks.step.objective.reconstruction

    def poisoned(reconstruction, images):
        bad = trainer.step + 1 in steps
        return loss(reconstruction, images) * (float("nan") if bad else 1.0)

    trainer.networks.step.objective.reconstruction = poisoned


def everything(trainer):
    """All that training changes, as one flat list of tensors."""
    networks = trainer.networks
    optimizers = [learner.optimizer.state_dict()["state"] for learner in networks.learners]
    return [
        *(value for learner in networks.learners for value in learner.module.state_dict().values()),
        *networks.ema.model.state_dict().values(),
        *networks.quantizer.upkeep.values(),
        *(value for state in optimizers for entry in state.values() for value in entry.values()),
    ]


@pytest.mark.parametrize("quantizer", ["vector", "ema"])
def test_a_loss_that_is_not_finite_changes_nothing(tiny, tmp_path, capsys, quantizer):
    trainer = Trainer(tiny(f"model.quantizer.type={quantizer}", "log_every=3"))
    poison(trainer, {5})
    before = {}
    update = trainer.optimizer_step

    def watched(*arguments):
        before[trainer.step] = [value.clone() for value in everything(trainer)]
        update(*arguments)

    trainer.optimizer_step = watched
    trainer.fit()
    same = [torch.equal(a, b) for a, b in zip(before[4], before[5], strict=True)]
    assert all(same)
    assert not all(torch.equal(a, b) for a, b in zip(before[3], before[4], strict=True))
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["skipped_steps"] for line in lines] == [0, 1]
    values = [value for line in lines for value in line.values()]
    assert all(math.isfinite(v) for value in values for v in (value if isinstance(value, list) else [value]))
    said = re.search(r"step 5 skipped: (.*) not finite; its images: (.*)", capsys.readouterr().out)
    assert {"loss", "reconstruction", "autoencoder_gradient_norm"} <= set(said[1].split(", "))
    assert len(re.findall(r"\d{3}\.png", said[2])) == 2


def test_too_many_in_a_row_end_the_run_with_a_diagnosis(tiny, tmp_path):
    trainer = Trainer(tiny("guard.max_consecutive=2", "max_steps=8"))
    torch.nn.init.constant_(trainer.networks.autoencoder.decoder.conv_out.bias, float("nan"))
    with pytest.raises(RunError) as caught:
        trainer.fit()
    message = str(caught.value)
    assert "guard.max_consecutive" in message
    assert "weights: not finite are decoder.conv_out.bias" in message
    assert "activations: not finite from decoder.conv_out on" in message
    assert "saved at step 2" in message
    assert (tmp_path / "run/checkpoints/step_000002").is_dir()


def test_going_back_never_writes_over_later_checkpoints(tiny, tmp_path):
    Trainer(tiny()).fit()
    earlier = f"resume={tmp_path}/run/checkpoints/step_000003"
    with pytest.raises(ConfigError, match="holds later ones"):
        Trainer(tiny("max_steps=8", earlier))
    branch = Trainer(tiny("max_steps=8", earlier, f"output_dir={tmp_path}/branch"))
    assert branch.step == 3


def test_settings_may_change_until_something_was_learned(tiny, tmp_path):
    trainer = Trainer(tiny())
    assert (tmp_path / "run/config.yaml").exists()
    assert trainer.step == 0
    Trainer(tiny("model.block_out_channels=[8, 8]", "max_steps=1")).fit()


def test_as_many_images_in_other_batches(tiny):
    Trainer(tiny("max_steps=3", "batch_size=2")).fit()
    with pytest.raises(ValueError, match="batch_size x processes is 4, but was 2"):
        Trainer(tiny("max_steps=6", "batch_size=4"))


def test_fp16_needs_a_gpu(tiny):
    if not torch.accelerator.is_available():
        with pytest.raises(ValueError, match="fp16, which needs a GPU"):
            Trainer(tiny("mixed_precision=fp16"))
    else:
        assert Trainer(tiny("mixed_precision=fp16")).accelerator.scaler is not None


def test_a_checkpoint_is_no_model_to_load(tiny, tmp_path):
    Trainer(tiny("max_steps=3")).fit()
    with pytest.raises(ValueError, match="part of a training checkpoint"):
        load_autoencoder(tmp_path / "run/checkpoints/step_000003/model.safetensors")
    assert (
        load_autoencoder(tmp_path / "run/model/diffusion_pytorch_model.safetensors").config.norm_num_groups
        == 4
    )
