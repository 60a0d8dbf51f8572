import torch

from latentae.losses.objective import ReconstructionObjective
from latentae.losses.reconstruction import l1
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
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-12)
        return accelerator

    monkeypatch.setattr("latentae.training.trainer.create_accelerator", with_scaler)
    trainer = Trainer(tiny("discriminator.r1={weight: 1.0, every: 1}", "max_steps=14", "log_every=1"))
    attempts, judge = [], trainer.guard.judge

    def judged(*arguments):
        found = dict(trainer.guard._losses)
        accepted = judge(*arguments)
        attempts.append((bool(accepted), [name for name, infinite in found.items() if infinite]))
        return accepted

    trainer.guard.judge = judged
    trainer.fit()
    assert (False, ["r1"]) in attempts
    assert attempts[-1] == (True, [])
    assert trainer.guard.skipped == 0
    assert trainer.accelerator.scaler.get_scale() < 2.0**127
