"""The step against the textbook: the same gradients, for the autoencoder and the discriminator."""

import copy
import itertools

import pytest
import torch
from torch import nn

from benchmarks.peers import textbook_step
from latentae.discriminators import DiffAugment
from latentae.losses.adversarial import ADVERSARIAL_LOSSES, R1, AdversarialTerms, LeCAM
from latentae.losses.kl import KLRegulariser
from latentae.models import KLVAE, VQVAE
from latentae.training.adversary import Adversary
from latentae.training.randomness import StepRandomness
from latentae.training.step import TrainingStep
from tests.models.conftest import make
from tests.training.small_networks import assert_same_gradients, gradients, small_networks


@pytest.fixture
def networks():
    return small_networks()


def make_step(networks, terms=None, **extras):
    autoencoder, discriminator, objective = networks
    adversary = Adversary(discriminator, terms or AdversarialTerms(), **extras)
    return TrainingStep(autoencoder, autoencoder.last_layer, objective, adversary)


@pytest.mark.parametrize(
    ("adversarial", "adaptive", "accumulation", "reuse"),
    [
        case
        for case in itertools.product(["on", "warm-up", "off"], [True, False], [1, 3], [True, False])
        if case[0] == "on" or (case[1] and case[3])
    ],
)
def test_gradients_equal_the_textbook(networks, adversarial, adaptive, accumulation, reuse):
    autoencoder, discriminator, objective = networks
    start = {"on": 0, "warm-up": 5, "off": 100}[adversarial]
    terms = AdversarialTerms(weight=0.7, adaptive=adaptive, start_step=start, discriminator_warmup_steps=10)
    micro_batches = [torch.rand(2, 3, 16, 16, dtype=torch.float64) * 2 - 1 for _ in range(accumulation)]
    expected = copy.deepcopy((autoencoder, discriminator))
    for images in micro_batches:
        textbook_step(*expected, objective, terms, images, step=2, accumulation=accumulation)

    step = make_step(networks, terms, reuse_forward=reuse)
    step.backward = lambda loss: (loss / accumulation).backward()
    for images in micro_batches:
        step(images, StepRandomness(0, 2))

    assert_same_gradients(gradients(autoencoder, discriminator), gradients(*expected))
    learned = {"on": True, "warm-up": True, "off": False}[adversarial]
    assert any(p.grad is not None for p in discriminator.parameters()) == learned


@pytest.mark.parametrize("name", ADVERSARIAL_LOSSES)
@pytest.mark.parametrize("schedule", ["ramp", "floor", "discriminator rests"])
def test_other_losses_and_schedules_equal_the_textbook(networks, name, schedule):
    changes = {
        "ramp": {"ramp_steps": 10},
        "floor": {"min_adaptive_weight": 50.0},
        "discriminator rests": {"update_every": 3},
    }[schedule]
    terms = AdversarialTerms(ADVERSARIAL_LOSSES[name], weight=0.7, **changes)
    autoencoder, discriminator, objective = networks
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64) * 2 - 1
    expected = copy.deepcopy((autoencoder, discriminator))
    textbook_step(*expected, objective, terms, images, step=4)
    losses = make_step(networks, terms)(images, StepRandomness(0, 4)).losses
    assert_same_gradients(gradients(autoencoder, discriminator), gradients(*expected))
    if schedule == "discriminator rests":
        assert gradients(discriminator) == [None] * len(list(discriminator.parameters()))
        assert "generator" in losses
        assert "discriminator" not in losses
    else:
        factor = {"ramp": 0.5, "floor": 1.0}[schedule] * 0.7
        assert losses["adversarial_weight"].item() == pytest.approx(factor * losses["adaptive_factor"].item())
        assert (losses["adaptive_factor"].item() == 50.0) == (schedule == "floor")


def test_each_network_runs_once(networks):
    autoencoder, discriminator, objective = networks
    calls = {"encoder": 0, "decoder": 0, "fake": 0, "features of the reconstruction": 0}

    def count(name):
        def hook(*_):
            calls[name] += 1

        return hook

    autoencoder.encoder.register_forward_hook(count("encoder"))
    autoencoder.decoder.register_forward_hook(count("decoder"))
    discriminator.register_forward_pre_hook(
        lambda _, inputs: count("fake")() if inputs[0].requires_grad else None
    )
    objective.perceptual.net.register_forward_pre_hook(
        lambda _, inputs: count("features of the reconstruction")() if inputs[0].requires_grad else None
    )
    step = make_step(networks, augmentation=DiffAugment(["color"]))
    step(torch.rand(2, 3, 16, 16, dtype=torch.float64), StepRandomness(0, 0))
    assert calls == dict.fromkeys(calls, 1)


def test_reports_what_it_did(networks):
    terms = AdversarialTerms(weight=0.5, start_step=10, discriminator_warmup_steps=5)
    step = make_step(networks, terms)
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    before, warm, on = (set(step(images, StepRandomness(0, number)).losses) for number in (4, 5, 10))
    assert before == {"loss", "reconstruction", "perceptual", "codebook", "commitment"}
    verdicts = {"logits_real", "logits_fake", "logit_gap", "accuracy_real", "accuracy_fake"}
    assert warm - before == {"discriminator", *verdicts}
    assert on - warm == {"generator", "adversarial_weight", "adaptive_factor"}
    result = step(images, StepRandomness(0, 10))
    losses = result.losses
    assert losses["adversarial_weight"] == pytest.approx(0.5 * losses["adaptive_factor"].item())
    assert result.indices.shape == (2, 8, 8)
    total = losses["reconstruction"] + 0.5 * losses["perceptual"] + losses["codebook"] + losses["commitment"]
    assert losses["loss"].item() == pytest.approx(total.item())


def test_a_size_that_the_factor_does_not_divide(networks):
    autoencoder, discriminator, objective = networks
    terms = AdversarialTerms(weight=0.7)
    images = torch.rand(2, 3, 17, 15, dtype=torch.float64) * 2 - 1
    expected = copy.deepcopy((autoencoder, discriminator))
    textbook_step(*expected, objective, terms, images, step=0)
    make_step(networks, terms)(images, StepRandomness(0, 0))
    assert_same_gradients(gradients(autoencoder), gradients(expected[0]))


@pytest.mark.parametrize("sides", [(16, 16), (17, 15)])
def test_a_decoder_that_ends_in_a_transposed_convolution(networks, sides):
    _, discriminator, objective = networks
    autoencoder = make(VQVAE, backbone="2017", block_out_channels=(8, 8, 8)).double().train()
    terms = AdversarialTerms(weight=0.7)
    images = torch.rand(2, 3, *sides, dtype=torch.float64) * 2 - 1
    expected = copy.deepcopy((autoencoder, discriminator))
    textbook_step(*expected, objective, terms, images, step=0)
    make_step((autoencoder, discriminator, objective), terms)(images, StepRandomness(0, 0))
    assert_same_gradients(gradients(autoencoder, discriminator), gradients(*expected))


class LearnedScale(nn.Module):
    """An objective with a parameter of its own: nll = e^−s · loss + s."""

    def __init__(self, objective):
        super().__init__()
        self.objective = objective
        self.log_scale = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, reconstruction, images):
        loss, terms = self.objective(reconstruction, images)
        return loss * (-self.log_scale).exp() + self.log_scale, terms


def test_the_objective_s_own_parameters_learn_through_the_one_backward(networks):
    autoencoder, discriminator, objective = networks
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64) * 2 - 1
    expected = copy.deepcopy((autoencoder, discriminator, LearnedScale(objective)))
    for _ in range(2):
        textbook_step(*expected, AdversarialTerms(), images, step=0, accumulation=2)

    learned = LearnedScale(objective)
    step = make_step((autoencoder, discriminator, learned))
    step.backward = lambda loss: (loss / 2).backward()
    for _ in range(2):
        step(images, StepRandomness(0, 0))
    assert learned.log_scale.grad is not None
    ours, theirs = (gradients(*modules) for modules in ((autoencoder, discriminator, learned), expected))
    assert_same_gradients(ours, theirs)


def test_a_step_never_waits_for_the_device(networks):
    """On the meta device, whose tensors have no values, whatever reads one fails."""
    autoencoder = KLVAE(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    ).double()
    networks = tuple(network.to("meta") for network in (autoencoder, *networks[1:]))
    lecam = LeCAM(0.1).double().to("meta")
    terms = AdversarialTerms(ramp_steps=5, min_adaptive_weight=0.1)
    augmentation = DiffAugment(["color", "translation", "cutout"])
    step = make_step(networks, terms, augmentation=augmentation, lecam=lecam, r1=R1(1.0, every=1))
    step.latents_shape, step.regulariser = autoencoder.latents_shape, KLRegulariser(1e-6)
    images = torch.empty(2, 3, 16, 16, dtype=torch.float64, device="meta")
    losses = step(images, StepRandomness(0, 3, device="meta")).losses
    lecam.commit(torch.tensor(True, device="meta"))
    assert {"lecam", "r1", "generator", "discriminator"} <= set(losses)
    assert {value.device.type for value in losses.values()} == {"meta"}
    assert all(p.grad is not None for network in networks[:2] for p in network.parameters())
