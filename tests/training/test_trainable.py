import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from latentae.config import load_config
from latentae.losses.kl import FreeBits, KLRegulariser, LinearWarmup, PosteriorReport, jeffreys
from latentae.losses.reconstruction import GaussianLikelihood, LaplaceLikelihood, ReconstructionObjective
from latentae.models import KLVAE
from latentae.training.latent_losses import TrainableAutoencoder
from latentae.training.randomness import StepRandomness
from latentae.training.step import TrainingStep
from latentae.training.trainer import Trainer

KL = ["model.class=KLVAE", "loss.adversarial=null", "discriminator=null", "loss.kl.weight=0.01"]
LEARNED = [
    *KL,
    "loss.reconstruction={type: laplace, weight: 0.5, log_scale: -1.0, scale_perceptual: true}",
    "loss.kl={divergence: jeffreys, free_bits: {nats: 30.0}, schedule: {type: linear, warmup_steps: 4}}",
    "optimizer.schedule=constant",
    "optimizer.weight_decay=0.5",
]
NAME = "learned.reconstruction_log_dispersion"


def tiny_kl_vae():
    torch.manual_seed(0)
    return KLVAE(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=2,
    ).double()


@pytest.fixture
def images():
    return torch.rand(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_it_is_the_autoencoder_with_more_parameters():
    autoencoder = nn.Linear(3, 2)
    objective = ReconstructionObjective(
        GaussianLikelihood(), perceptual=nn.Linear(1, 1).requires_grad_(False)
    )
    trainable = TrainableAutoencoder(autoencoder, objective)
    assert set(dict(trainable.named_parameters())) == {"autoencoder.weight", "autoencoder.bias", NAME}
    assert trainable.learned["reconstruction_log_dispersion"] is objective.reconstruction.log_dispersion
    inputs = torch.rand(4, 3)
    assert torch.equal(trainable(input=inputs), autoencoder(inputs))


def test_learned_parameters_do_not_decay():
    trainable = TrainableAutoencoder(
        nn.Linear(1, 1), ReconstructionObjective(GaussianLikelihood(-4.0)), learning_rate_scale=3.0
    )
    optimizer = torch.optim.SGD(trainable.parameters(), lr=0.1, weight_decay=0.5)
    trainable.set_apart(optimizer)
    weights, learned = optimizer.param_groups
    assert [parameter.shape for parameter in weights["params"]] == [(1, 1), (1,)]
    assert learned["params"] == [trainable.learned["reconstruction_log_dispersion"]]
    assert learned["lr_scale"] == 3.0
    before = trainable.autoencoder.weight.item()
    for parameter in trainable.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert trainable.autoencoder.weight.item() == pytest.approx(before * (1 - 0.1 * 0.5))
    assert learned["params"][0].item() == -4.0


@pytest.mark.parametrize("likelihood", [GaussianLikelihood(-0.5), LaplaceLikelihood(-0.5)])
def test_the_steps_gradients_are_autograds(images, likelihood):
    autoencoder, objective = tiny_kl_vae(), ReconstructionObjective(likelihood).double()
    trainable = TrainableAutoencoder(autoencoder, objective)
    regulariser = KLRegulariser(0.3)
    step = TrainingStep(
        trainable,
        autoencoder.last_layer,
        objective,
        regulariser=regulariser,
        latents_shape=autoencoder.latents_shape,
    )
    losses = step(images, StepRandomness(0, 0)).losses
    actual = {name: parameter.grad for name, parameter in trainable.named_parameters()}

    noise = StepRandomness(0, 0).normal("posterior", 2, 2, 4, 4)
    output = autoencoder(images, noise=noise)
    loss = objective(output.sample, images)[0] + regulariser(output)["kl"]
    expected = dict(zip(actual, torch.autograd.grad(loss, list(trainable.parameters())), strict=True))
    torch.testing.assert_close(losses["loss"], loss.detach())
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-10, atol=1e-14, msg=name)
    assert actual[NAME].abs() > 0.01


def test_the_log_is_written_without_waiting_for_the_device():
    """On the meta device, whose tensors have no values, whatever reads one fails."""
    autoencoder = tiny_kl_vae().to("meta")
    objective = ReconstructionObjective(GaussianLikelihood()).to("meta")
    regulariser = KLRegulariser(0.3, schedule=LinearWarmup(3), free_bits=FreeBits(2.0), divergence=jeffreys)
    step = TrainingStep(
        TrainableAutoencoder(autoencoder, objective),
        autoencoder.last_layer,
        objective,
        regulariser=regulariser,
        report=PosteriorReport(regulariser, likelihood=True),
        latents_shape=autoencoder.latents_shape,
    )
    images = torch.empty(2, 3, 8, 8, dtype=torch.float64, device="meta")
    losses = step(images, StepRandomness(0, 1, device="meta")).losses
    assert {"kl", "kl_weight", "kl_free_groups", "elbo_nats", "log_variance"} <= set(losses)
    assert {value.device.type for value in losses.values()} == {"meta"}


def test_training_finds_the_best_variance(images):
    """With the autoencoder held, the log-variance goes to the logarithm of the mean squared error."""
    autoencoder, objective = tiny_kl_vae(), ReconstructionObjective(GaussianLikelihood(2.0)).double()
    trainable = TrainableAutoencoder(autoencoder.requires_grad_(False), objective)
    # The loss bends by ½ at its lowest point: at this rate each step halves what is left.
    optimizer = torch.optim.SGD(trainable.learned.parameters(), lr=1.0)
    step = TrainingStep(trainable, autoencoder.last_layer, objective)
    for number in range(25):
        losses = step(images, StepRandomness(0, number)).losses
        optimizer.step()
        optimizer.zero_grad()
    optimum = (autoencoder(images).sample - images).square().mean().log()
    assert abs(optimum) > 0.1
    torch.testing.assert_close(objective.reconstruction.log_dispersion.data, optimum, atol=1e-3, rtol=0)
    assert losses["log_variance"].item() == pytest.approx(losses["squared_error"].log().item(), abs=1e-3)


@pytest.fixture
def learned(tiny, tmp_path):
    def config(*overrides):
        return load_config("kl_vae", ["--config", str(tiny.file), *LEARNED, *overrides])

    return config


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_with_a_learned_scale(learned, tmp_path):
    trainer = Trainer(learned("log_every=1", "optimizer.warmup_steps=0", "max_grad_norm=null"))
    scale = trainer.networks.step.objective.reconstruction.log_dispersion
    trainer.fit()
    lines = metrics(tmp_path / "run")
    for line in lines:
        terms = 0.5 * line["reconstruction"] + line["perceptual_weight"] * line["perceptual"] + line["kl"]
        assert line["loss"] == pytest.approx(terms, rel=1e-4)
        values = 3 * 32 * 32
        assert line["elbo_nats"] == pytest.approx(
            -values * line["reconstruction"] - line["kl_nats"], rel=1e-4
        )
    # Adam's first step is its whole rate, 100 times 1e-3; here upwards.
    assert lines[0]["log_scale"] == -1.0
    assert lines[1]["log_scale"] == pytest.approx(-0.9, abs=1e-4)
    assert len({line["log_scale"] for line in lines}) == 6
    assert [line["kl_weight"] for line in lines] == pytest.approx(
        [1e-2 * min(1, step / 4) for step in range(6)]
    )
    saved = load_file(tmp_path / "run/checkpoints/step_000006/model.safetensors")
    assert saved[NAME].item() == scale.item()
    exported = load_file(tmp_path / "run/model/diffusion_pytorch_model.safetensors")
    assert not any("learned" in name or name.startswith("autoencoder.") for name in exported)


def test_a_learned_scale_resumes(learned, tmp_path):
    for run, steps in (("whole", [4]), ("halves", [2, 4])):
        for count in steps:
            Trainer(learned(f"output_dir={tmp_path}/{run}", f"max_steps={count}")).fit()
    whole, halves = (
        load_file(tmp_path / run / "checkpoints/step_000004/model.safetensors") for run in ("whole", "halves")
    )
    assert whole[NAME].item() != -1.0
    for name, value in whole.items():
        assert torch.equal(value, halves[name]), name


def test_without_learned_parameters_checkpoints_have_the_models_names(tiny, tmp_path):
    fixed = "loss.reconstruction={type: gaussian, log_variance: -2.0, learned: false}"
    trainer = Trainer(load_config("kl_vae", ["--config", str(tiny.file), *KL, fixed, "max_steps=1"]))
    trainer.fit()
    saved = load_file(tmp_path / "run/checkpoints/step_000001/model.safetensors")
    assert set(saved) == set(trainer.networks.autoencoder.state_dict())
    assert metrics(tmp_path / "run")[0]["log_variance"] == -2.0
