import torch

from latentae.losses.objective import ReconstructionObjective
from latentae.losses.reconstruction import l1
from latentae.training.accelerator import create_accelerator
from latentae.training.networks import build_networks


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
