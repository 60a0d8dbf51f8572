"""Runs of TinyAutoencoder: fresh, fine-tuned, with other decoders, resumed, and on two ranks."""

import copy
import json
import shutil

import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file

from latentae import TinyAutoencoder, load_autoencoder
from latentae.config import ConfigError, load_config
from latentae.losses.adversarial import AdversarialTerms
from latentae.models.decoders import downscale
from latentae.training.adversary import Adversary
from latentae.training.dry_run import dry_run
from latentae.training.latent_losses import LatentLosses
from latentae.training.randomness import StepRandomness
from latentae.training.speed import compile_networks
from latentae.training.step import TrainingStep
from latentae.training.trainer import Trainer
from tests.processes import launch
from tests.training.pretrained_models import TAESD, fine_tuning, make_tiny
from tests.training.small_networks import assert_same_gradients, gradients, small_networks

FROZEN = ("freeze_encoder=true", "loss.teacher={features_weight: 0}")
PRETRAINED = ("model.pretrained=b", "model.block_out_channels=[8, 8]", "model.latent_channels=4")
FEW = ("max_steps=3", "checkpoint_every=1", "optimizer.schedule=constant")


@pytest.fixture
def place(tmp_path):
    make_tiny().save_pretrained(tmp_path / "pretrained")
    return str(tmp_path / "pretrained")


def fresh(tiny, *overrides):
    return load_config("kl_vae", ["--config", str(tiny.file), *TAESD, *overrides])


def from_pretrained(tiny, place, *overrides):
    return fine_tuning(tiny, place, *overrides, cls=TinyAutoencoder)


def weights(run):
    return load_file(run / "model/diffusion_pytorch_model.safetensors")


def assert_same_weights(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(second[name], value), name


def test_a_fresh_run_with_an_adversary_and_losses_of_latents(tiny, tmp_path):
    arguments = ["model.class=TinyAutoencoder", "model.block_out_channels=[8, 8]", "loss.perceptual=null"]
    losses = [
        "loss.equivariance.min_scale=1",
        "loss.latent_noise={scale: 0.1}",
        "loss.spectral={factors: [2]}",
    ]
    config = load_config("kl_vae", ["--config", str(tiny.file), *arguments, *losses])
    summary = Trainer(config).fit()
    assert summary["scale_source"] == "measured on the training images"
    stock = AutoencoderTiny.from_pretrained(tmp_path / "run/model")
    assert stock.config.scaling_factor == summary["scaling_factor"] != 1
    assert stock.config.shift_factor == summary["shift_factor"]
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["adversarial_weight"] > 0
    assert not load_autoencoder(tmp_path / "run").training
    assert stock.dtype == torch.float32


@pytest.mark.parametrize("shape", ["{widths: [4, 8]}", "{upscale: 2}"])
def test_only_the_decoder_changes_and_a_resume_is_exact(tiny, tmp_path, place, shape):
    shared = [*FROZEN, *FEW]
    whole = from_pretrained(tiny, place, *shared, f"decoder={shape}", f"output_dir={tmp_path}/whole")
    Trainer(whole).fit()
    Trainer(from_pretrained(tiny, place, *shared, f"decoder={shape}", "max_steps=1")).fit()
    own = make_tiny().state_dict()
    continued = Trainer(from_pretrained(tiny, place, *shared))  # the run itself tells its shape
    assert continued.step == 1
    continued.fit()
    assert_same_weights(weights(tmp_path / "whole"), weights(tmp_path / "run"))
    model = load_autoencoder(tmp_path / "run")
    for name in (name for name in own if name.startswith("encoder.")):
        assert torch.equal(model.state_dict()[name], own[name]), name
    assert not torch.equal(
        model.decoder.layers[0].bias, make_tiny().decoder.layers[0].bias[: len(model.decoder.layers[0].bias)]
    )
    assert model.config.scaling_factor == 1
    assert model.upscale == (2 if "upscale" in shape else 1)


def test_both_halves_learn_and_a_resume_needs_no_pretrained_model(tiny, tmp_path, place):
    Trainer(from_pretrained(tiny, place, *FEW, f"output_dir={tmp_path}/whole")).fit()
    Trainer(from_pretrained(tiny, place, *FEW, "max_steps=1")).fit()
    shutil.rmtree(place)
    Trainer(from_pretrained(tiny, place, *FEW)).fit()
    assert_same_weights(weights(tmp_path / "whole"), weights(tmp_path / "run"))
    before = make_tiny().state_dict()
    for name, value in weights(tmp_path / "run").items():
        assert not torch.equal(value, before[name]), name


def test_two_ranks_equal_one(tiny, tmp_path, place):
    # Adam divides by the gradient's size, which turns the rounding of a tiny one into a whole step.
    shared = [*FROZEN[1:], *FEW, "optimizer.epsilon=1.0e-3"]
    Trainer(from_pretrained(tiny, place, *shared, "batch_size=4", f"output_dir={tmp_path}/one")).fit()
    given = [*TAESD, f"model.pretrained={place}", *shared, "batch_size=2", f"output_dir={tmp_path}/two"]
    launch("scripts/train_kl_vae.py", 2, "--config", str(tiny.file), *given, HF_HUB_OFFLINE="1")
    for name, value in weights(tmp_path / "one").items():
        torch.testing.assert_close(weights(tmp_path / "two")[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("folds", "upscale"), [(1, 1), (2, 2)])
def test_a_step_has_the_gradients_of_autograd(folds, upscale):
    """With the adaptive weight, whose gradients are taken before the pixel shuffle and the doubling."""
    _, discriminator, objective = small_networks()
    model = make_tiny(folds=folds, upscale=upscale).double().train()
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64) * 2 - 1
    twin, critic = copy.deepcopy((model, discriminator))

    sample = twin(downscale(images, upscale)).sample
    nll, _ = objective(sample, images)
    adversarial = -critic(sample).mean()
    (first,) = torch.autograd.grad(nll, twin.last_layer.weight, retain_graph=True)
    (second,) = torch.autograd.grad(adversarial, twin.last_layer.weight, retain_graph=True)
    weight = 0.7 * (first.norm() / (second.norm() + 1e-4)).clamp(0, 1e4)
    twin.zero_grad()
    (nll + weight.detach() * adversarial).backward(inputs=list(twin.parameters()))

    step = TrainingStep(
        model,
        model.last_layer,
        objective,
        Adversary(discriminator, AdversarialTerms(weight=0.7)),
        latent_losses=LatentLosses(model.downsampling_factor, model.upscale),
        output_gain=model.output_gain,
    )
    found = step(images, StepRandomness(0, 0)).losses["adversarial_weight"].item()
    assert found == pytest.approx(weight.item(), rel=1e-10)
    assert_same_gradients(gradients(model), gradients(twin))


def test_a_dry_run_tells_sizes(tiny, place):
    report = dry_run(from_pretrained(tiny, place, *FROZEN, "decoder={upscale: 2}"))
    assert "3x16x16 -> 4x8x8 (f2), 3:1 in numbers; decoded to 3x32x32 (x2)" in " ".join(str(report).split())


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["loss.kl={weight: 1.0e-6}"],
            "`loss.kl` is set, but `model.class: TinyAutoencoder` has no posterior",
        ),
        (["model.norm_num_groups=4"], "unknown key `model.norm_num_groups`"),
        (["decoder={widths: [8]}"], "`decoder.widths` is [8]; it needs one number for each of the 2 levels"),
        (
            ["loss.teacher={model: a, features_weight: 0.1}", "freeze_encoder=true", *PRETRAINED],
            "the decoder of `model.class: TinyAutoencoder` has no such levels",
        ),
    ],
)
def test_what_it_has_not(tiny, overrides, says):
    with pytest.raises(ConfigError) as caught:
        fresh(tiny, *overrides)
    assert says in str(caught.value)


def test_its_blocks_are_compiled_one_by_one(monkeypatch):
    monkeypatch.setattr("latentae.training.speed.BACKEND", "eager")
    model = make_tiny()
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    assert "2 blocks of encoder, 2 blocks of decoder" in compile_networks(model, None, None)
    assert model.last_layer._compiled_call_impl is None
    assert model(images).sample.shape == images.shape
