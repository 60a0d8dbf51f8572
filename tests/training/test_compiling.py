import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._dynamo import config as dynamo_config
from torch._dynamo.utils import counters

from latentae.losses.adversarial import AdversarialTerms
from latentae.losses.perceptual import LPIPS
from latentae.losses.reconstruction import ReconstructionObjective, l1
from latentae.models.lean import make_lean
from latentae.training import speed
from latentae.training.accelerator import create_accelerator
from latentae.training.adversary import Adversary
from latentae.training.networks import build_networks
from latentae.training.randomness import StepRandomness
from latentae.training.speed import compile_networks
from latentae.training.step import TrainingStep
from latentae.training.trainer import Trainer
from tests.models.conftest import make
from tests.training.small_networks import assert_same_gradients, gradients, small_networks


@pytest.fixture(autouse=True)
def traced_only(monkeypatch):
    """Everything but the last step of compiling, which needs a C++ compiler and minutes."""
    monkeypatch.setattr(speed, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    counters.clear()


def small_step(*, lean, compiled):
    autoencoder, discriminator, objective = small_networks()
    if lean:
        make_lean(autoencoder)
    if compiled:
        compile_networks(autoencoder, objective.perceptual, discriminator)
    terms = AdversarialTerms(start_step=1)
    step = TrainingStep(autoencoder, autoencoder.last_layer, objective, Adversary(discriminator, terms))
    return step, autoencoder, discriminator


@pytest.mark.parametrize(("lean", "backend"), [(False, "eager"), (True, "aot_eager")])
def test_gradients_of_adversarial_steps_are_those_without(monkeypatch, lean, backend):
    monkeypatch.setattr(speed, "BACKEND", backend)
    plain, compiled = (small_step(lean=lean, compiled=compiled) for compiled in (False, True))
    graphs = []
    for number in range(4):  # the first one without the discriminator; gradients add up
        torch.manual_seed(number)
        images = torch.rand(2, 3, 16, 16, dtype=torch.float64) * 2 - 1
        randomness = StepRandomness(seed=0, step=number)
        losses = [step(images, randomness).losses for step, *_ in (compiled, plain)]
        assert_same_gradients(gradients(*compiled[1:]), gradients(*plain[1:]))
        torch.testing.assert_close(*losses, rtol=1e-9, atol=1e-9)
        graphs.append(counters["stats"]["unique_graphs"])
    # In each half 2 levels and the middle, forward with a gradient; the discriminator's fake and real side.
    assert graphs == [6, 8, 8, 8]
    assert not counters["graph_break"]


def test_names_and_copies_are_those_without():
    model = make()
    names, kind = list(model.state_dict()), type(model.decoder.mid_block)
    sentence = compile_networks(model, None, None)
    assert sentence.startswith(
        "compile=true: 3 blocks of encoder, 3 blocks of decoder are compiled by aot_eager when first called"
    )
    assert list(model.state_dict()) == names
    assert type(model.decoder.mid_block) is kind
    assert model.decoder.mid_block._compiled_call_impl is not None
    assert model.decoder.conv_out._compiled_call_impl is None  # which a step watches
    assert copy.deepcopy(model).decoder.mid_block._compiled_call_impl is None


def test_under_ddp_gradients_are_those_without(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "BACKEND", "eager")
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    plain = make()
    compiled = copy.deepcopy(plain)
    compile_networks(compiled, None, None)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1
    )
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(compiled, gradient_as_bucket_view=True)
        for model in (plain, wrapped):
            model(images).sample.square().sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    assert counters["stats"]["unique_graphs"] > 0
    torch.testing.assert_close(gradients(compiled), gradients(plain))


@pytest.mark.parametrize("chunk", [None, 2])
def test_lpips_has_the_same_values_and_gradients(alexnet_trunk, chunk):
    plain, compiled = LPIPS(alexnet_trunk, chunk=chunk), LPIPS(alexnet_trunk, chunk=chunk)
    assert ", LPIPS are compiled" in compile_networks(make(), compiled, None)
    images, target = torch.rand(2, 3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    results = []
    for lpips in (plain, compiled):
        leaf = images.clone().requires_grad_()
        distances = lpips(leaf, target)
        results.append((distances.detach(), torch.autograd.grad(distances.sum(), leaf)[0]))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-7)
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == (1 if chunk is None else 2)  # of 2 images, and of the last


def test_a_torch_that_counts_variants_together_is_given_higher_limits(monkeypatch):
    """As releases before 2.14 do. The blocks of a class then make more variants than torch allows."""
    monkeypatch.setattr(speed, "_can_isolate_blocks", lambda: False)
    blocks = nn.Sequential(
        *(nn.Sequential(nn.Conv2d(channels, channels + 1, 1), nn.SiLU()) for channels in range(1, 6))
    )
    inputs = torch.ones(1, 1, 8, 8)
    expected = blocks(inputs)
    with dynamo_config.patch(recompile_limit=2, accumulated_recompile_limit=2):
        assert "5 blocks of encoder" in compile_networks(
            SimpleNamespace(encoder=blocks, decoder=None), None, None
        )
        torch.testing.assert_close(blocks(inputs), expected)
    assert counters["stats"]["unique_graphs"] == 5


@pytest.mark.parametrize("r1", ["null", "{weight: 1.0}"])
def test_a_discriminator_that_is_differentiated_twice_stays_as_it_is(tiny, r1):
    config = tiny("compile=true", f"discriminator.r1={r1}")
    networks = build_networks(config, create_accelerator(config), ReconstructionObjective(l1))
    layers = networks.learners[1].module.layers
    assert (layers._compiled_call_impl is None) == (r1 != "null")
    assert any("of decoder" in line for line in networks.describe())
    assert networks.ema.model.decoder.mid_block._compiled_call_impl is None


def test_a_compiled_run_saves_what_any_run_continues_and_comes_to_the_same(monkeypatch, tiny, tmp_path):
    monkeypatch.setattr(speed, "BACKEND", "eager")  # the very operations of an uncompiled run
    small = ("loss.perceptual=null", "model.block_out_channels=[8]", "max_steps=4")
    checkpoint = tmp_path / "compiled" / "checkpoints" / "step_000003"
    weights = []
    for name, *changes in (
        ("compiled", "compile=true"),
        ("plain",),
        ("resumed", f"resume={checkpoint}"),
    ):
        trainer = Trainer(tiny(*small, f"output_dir={tmp_path}/{name}", *changes))
        assert trainer.step == (3 if name == "resumed" else 0)
        trainer.fit()
        weights.append(trainer.networks.autoencoder.state_dict())
    assert counters["stats"]["unique_graphs"] > 0
    for others in weights[1:]:
        assert weights[0].keys() == others.keys()
        assert all(torch.equal(value, others[name]) for name, value in weights[0].items())
