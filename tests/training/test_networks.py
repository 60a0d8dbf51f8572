import pytest
import torch
from torchvision.models import vgg16

from latentae.losses.reconstruction import ReconstructionObjective, l1
from latentae.training.accelerator import create_accelerator
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
    network, seen = networks.step.latent_losses.alignment.network, []
    network.layers[0].register_forward_hook(lambda _, __, output: seen.append(str(output.dtype)))
    assert network(torch.rand(1, 3, 32, 32), (16, 16)).dtype == torch.float32
    assert seen == [f"torch.{precision}"]
    said = [line for line in networks.describe() if "loss.alignment" in line]
    assert said == (
        [] if precision == "float32" else [f"the network of loss.alignment computes in {precision}"]
    )
