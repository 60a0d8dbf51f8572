import pytest
import torch

from latentae.losses.objective import ReconstructionObjective
from latentae.losses.perceptual import LPIPS
from latentae.losses.reconstruction import l1
from latentae.training.accelerator import create_accelerator
from latentae.training.networks import build_networks
from latentae.training.performance import tune
from latentae.training.trainer import Trainer
from tests.models.conftest import make

CPU = torch.device("cpu")


def kinds(model):
    return {type(module).__name__ for module in model.modules()}


@pytest.mark.parametrize(("size", "chunk"), [((64, 64), 8), ((128, 256), 1), ((512, 512), 1)])
def test_on_a_cpu_blocks_are_lean_and_lpips_goes_in_chunks(alexnet_trunk, size, chunk):
    model, objective = make(), ReconstructionObjective(l1, perceptual=LPIPS(alexnet_trunk))
    sentence = tune(model, objective, size, CPU)
    assert objective.perceptual.chunk == chunk
    assert {"LeanResnetBlock2D", "LeanUpsample2D", "LeanActivatedNorm"} < kinds(model)
    # 1 + 1 + 2 residual blocks, attention and a norm; 2 + 2 + 2 with the same and an upsampling
    assert sentence == f"performance=auto on cpu: 15 lean blocks, LPIPS {chunk} images at a time"


def test_where_nothing_was_measured_nothing_is_changed(alexnet_trunk):
    model, objective = make(), ReconstructionObjective(l1, perceptual=LPIPS(alexnet_trunk))
    sentence = tune(model, objective, (64, 64), torch.device("xpu"))
    assert sentence == "performance=auto on xpu: nothing to choose"
    assert objective.perceptual.chunk is None
    assert "LeanResnetBlock2D" not in kinds(model)


@pytest.mark.parametrize("setting", ["auto", "off"])
def test_the_config_decides_and_what_is_exported_is_stock(tiny, setting):
    config = tiny(f"performance={setting}")
    networks = build_networks(config, create_accelerator(config), ReconstructionObjective(l1))
    assert ("LeanResnetBlock2D" in kinds(networks.autoencoder)) == (setting == "auto")
    assert "LeanResnetBlock2D" not in kinds(networks.ema.model)
    assert any("performance=auto" in line for line in networks.describe()) == (setting == "auto")


def test_training_comes_to_the_same_with_and_without(tiny, tmp_path):
    weights = []
    # Adam divides by a gradient's size: with its usual epsilon, rounding errors near 0 would be whole steps.
    gently = ("optimizer.epsilon=1.0e-3", "discriminator.optimizer.epsilon=1.0e-3", "max_steps=3")
    for setting in ("auto", "off"):
        trainer = Trainer(tiny(*gently, f"performance={setting}", f"output_dir={tmp_path}/{setting}"))
        trainer.fit()
        weights.append([p.detach().clone() for p in trainer.networks.autoencoder.parameters()])
    torch.testing.assert_close(*weights, rtol=0, atol=1e-5)
