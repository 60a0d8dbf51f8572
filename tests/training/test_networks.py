import pytest
import torch
from torchvision.models import vgg16

from latentae.config import load_config
from latentae.losses.adversarial import R1
from latentae.losses.latents import Alignment, Equivariance, LatentNoise
from latentae.losses.reconstruction import ReconstructionObjective, l1
from latentae.training.accelerator import create_accelerator
from latentae.training.latent_losses import LatentLosses
from latentae.training.networks import build_networks
from latentae.training.trainer import Trainer


def build(config):
    return build_networks(config, create_accelerator(config), ReconstructionObjective(l1))


def test_the_seed_determines_the_weights(tiny):
    first, again, other = build(tiny()), build(tiny()), build(tiny("seed=5"))
    weight = [networks.autoencoder.encoder.conv_in.weight for networks in (first, again, other)]
    assert torch.equal(weight[0], weight[1])
    assert not torch.equal(weight[0], weight[2])


def test_each_network_has_its_own_optimizer(tiny):
    networks = build(tiny("discriminator.optimizer.learning_rate=0.5"))
    assert [learner.name for learner in networks.learners] == ["autoencoder", "discriminator"]
    assert networks.learners[1].learning_rate.peak == 0.5
    held = {
        id(p) for learner in networks.learners for g in learner.optimizer.param_groups for p in g["params"]
    }
    trained = [p for learner in networks.learners for p in learner.module.parameters() if p.requires_grad]
    assert held == {id(p) for p in trained}


def test_a_run_under_a_gradient_scaler_loses_no_update_to_the_guard(tiny, monkeypatch):
    """A scale that is far too large falls until gradients, and the penalty on them, are finite."""

    def with_scaler(config):
        accelerator = create_accelerator(config)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-4)
        return accelerator

    monkeypatch.setattr("latentae.training.trainer.create_accelerator", with_scaler)
    trainer = Trainer(tiny("discriminator.r1={weight: 1.0, every: 1}", "max_steps=16", "log_every=1"))
    attempts, accept = [], trainer.guard.accept

    def watched(*arguments):
        found = dict(trainer.guard._losses)
        accepted = accept(*arguments)
        attempts.append((bool(accepted), [name for name, infinite in found.items() if infinite]))
        return accepted

    trainer.guard.accept = watched
    trainer.fit()
    assert (False, ["r1"]) in attempts
    assert attempts[-1] == (True, [])
    assert trainer.guard.skipped == 0
    assert trainer.accelerator.scaler.get_scale() < 2.0**127


def test_the_regularisers_of_the_discriminator_get_their_arguments(tiny):
    plain = build(tiny()).step.adversary
    assert (plain.lecam, plain.augmentation, plain.r1) == (None, None, None)
    changes = ["discriminator.augment=[cutout, translation]", "discriminator.r1.weight=2.0"]
    adversary = build(tiny("loss.adversarial.lecam.weight=0.5", *changes)).step.adversary
    assert (adversary.lecam.weight, adversary.lecam.decay) == (0.5, 0.999)
    assert adversary.augmentation.num_draws == 4
    assert adversary.r1 == R1(2.0, every=16)


def test_the_losses_on_latents_get_their_arguments(tiny):
    assert build(tiny("loss.perceptual=null")).step.latent_losses == LatentLosses(2)
    changes = [
        "loss.equivariance={probability: 0.25, min_scale: 0.5, rotate: false}",
        "loss.latent_noise={scale: 0.5}",
        "loss.spectral={weight: 0.75, factors: [2]}",
    ]
    losses = build(tiny("loss.perceptual=null", *changes)).step.latent_losses
    assert losses.equivariance == Equivariance(0.25, min_scale=0.5, rotate=False)
    assert losses.noise == LatentNoise(0.5)
    assert (losses.spectral.weight, losses.spectral.factors) == (0.75, (2,))


def test_a_posterior_starts_at_the_log_variance_of_the_config(tiny):
    changes = ["model.class=KLVAE", "loss.adversarial=null", "discriminator=null", "loss.perceptual=null"]
    arguments = ["--config", str(tiny.file), *changes, "loss.kl={initial_log_variance: -6.5}"]
    networks = build(load_config("kl_vae", arguments))
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    for model in (networks.autoencoder, networks.ema.model):
        posterior = model.encode(images).latent_dist
        assert torch.equal(posterior.logvar, torch.full_like(posterior.mean, -6.5))
        assert posterior.mean.std() > 0.01
    # It learns from there: other images get another variance.
    layer = networks.autoencoder.quant_conv or networks.autoencoder.encoder.conv_out
    networks.autoencoder(images, sample_posterior=True).sample.square().sum().backward()
    channels = len(layer.weight) // 2
    assert layer.weight.grad[channels:].abs().amax(dim=(1, 2, 3)).min() > 0


@pytest.mark.parametrize("kind", ["l1", "gaussian"])
def test_the_elbo_is_reported_if_there_is_a_likelihood(tiny, kind):
    changes = ["model.class=KLVAE", "loss.adversarial=null", "discriminator=null", "loss.perceptual=null"]
    changes.append(f"loss.reconstruction={{type: {kind}}}")
    with_kl, without = (
        build(load_config("kl_vae", ["--config", str(tiny.file), *changes, kl]))
        for kl in ("loss.kl.weight=0.1", "loss.kl=null")
    )
    assert with_kl.step.report.likelihood is (kind == "gaussian")
    assert without.step.report is None


@pytest.mark.parametrize(
    ("changes", "precision"),
    [
        (("mixed_precision=bf16", "loss.alignment={network: vgg16}"), "bfloat16"),
        (("mixed_precision=bf16", "loss.alignment={network: vgg16, precision: float32}"), "float32"),
        (("loss.alignment={network: vgg16}",), "float32"),
    ],
)
def test_the_network_to_align_with_follows_the_run(tiny, monkeypatch, changes, precision):
    """It says so at the start; what it gives is float32."""
    with torch.device("meta"):
        trunk = vgg16(weights=None).features.state_dict(prefix="features.")
    trunk = {name: torch.empty_like(value, device="cpu").normal_(std=0.02) for name, value in trunk.items()}
    monkeypatch.setattr("latentae.build.load_trunk", lambda name: trunk)
    networks = build(tiny("loss.perceptual=null", *changes))
    aligned = networks.step.latent_losses.alignment
    assert aligned.loss == Alignment()
    network, seen = aligned.network, []
    network.layers[0].register_forward_hook(lambda _, __, output: seen.append(str(output.dtype)))
    assert network(torch.rand(1, 3, 32, 32), (16, 16)).dtype == torch.float32
    assert seen == [f"torch.{precision}"]
    said = [line for line in networks.describe() if "loss.alignment" in line]
    assert said == (
        [] if precision == "float32" else [f"the network of loss.alignment computes in {precision}"]
    )
