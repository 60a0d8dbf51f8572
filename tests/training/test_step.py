"""The step against the textbook: the same gradients, for the autoencoder and the discriminator."""

import copy
import itertools

import pytest
import torch
from torch import nn

from benchmarks.textbook import textbook_step
from latentae.discriminators import PatchGAN
from latentae.losses.adversarial import AdversarialTerms
from latentae.losses.objective import ReconstructionObjective
from latentae.losses.reconstruction import l1
from latentae.models import VQGAN
from latentae.training.randomness import StepRandomness
from latentae.training.step import TrainingStep


class FeatureDistance(nn.Module):
    """A frozen random network in the place of LPIPS: what matters here is that it has a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.SiLU(), nn.Conv2d(8, 8, 3, 2)).requires_grad_(
            False
        )

    def forward(self, reconstruction, images):
        return (self.net(reconstruction) - self.net(images)).square().mean(dim=(1, 2, 3))


def tiny_vqgan(quantizer: str = "vector") -> VQGAN:
    return VQGAN(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
        num_vq_embeddings=16,
        quantizer={"type": quantizer},
    )


@pytest.fixture
def networks():
    torch.manual_seed(0)
    objective = ReconstructionObjective(l1, perceptual=FeatureDistance(), perceptual_weight=0.5)
    discriminator = PatchGAN(3, base_channels=8, num_layers=1)
    # With weights of N(0, 0.02) gradients are as small as the 1e-4 in the adaptive weight and tell little.
    for parameter in discriminator.parameters():
        parameter.data.mul_(5)
    return tiny_vqgan().double(), discriminator.double(), objective.double()


def textbook_gradients(autoencoder, discriminator, objective, terms, micro_batches, step):
    for images in micro_batches:
        textbook_step(
            autoencoder, discriminator, objective, terms, images, step, accumulation=len(micro_batches)
        )


def gradients(*modules):
    return [None if p.grad is None else p.grad.clone() for module in modules for p in module.parameters()]


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
    expected_networks = copy.deepcopy((autoencoder, discriminator))
    textbook_gradients(*expected_networks, objective, terms, micro_batches, step=2)

    step = TrainingStep(
        autoencoder,
        autoencoder.last_layer,
        objective,
        discriminator,
        terms,
        backward=lambda loss: (loss / accumulation).backward(),
        reuse_discriminator_forward=reuse,
    )
    for images in micro_batches:
        step(images, StepRandomness(0, 2))

    actual, expected = gradients(autoencoder, discriminator), gradients(*expected_networks)
    assert len(actual) == len(expected)
    for ours, theirs in zip(actual, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    learned = {"on": True, "warm-up": True, "off": False}[adversarial]
    assert any(p.grad is not None for p in discriminator.parameters()) == learned


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
    step = TrainingStep(autoencoder, autoencoder.last_layer, objective, discriminator)
    step(torch.rand(2, 3, 16, 16, dtype=torch.float64), StepRandomness(0, 0))
    assert calls == dict.fromkeys(calls, 1)


def test_reports_what_it_did(networks):
    autoencoder, discriminator, objective = networks
    terms = AdversarialTerms(weight=0.5, start_step=10, discriminator_warmup_steps=5)
    step = TrainingStep(autoencoder, autoencoder.last_layer, objective, discriminator, terms)
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    before, warm, on = (set(step(images, StepRandomness(0, number)).losses) for number in (4, 5, 10))
    assert before == {"loss", "reconstruction", "perceptual", "codebook", "commitment"}
    assert warm - before == {"discriminator", "logits_real", "logits_fake"}
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
    textbook_gradients(*expected, objective, terms, [images], step=0)
    TrainingStep(autoencoder, autoencoder.last_layer, objective, discriminator, terms)(
        images, StepRandomness(0, 0)
    )
    for ours, theirs in zip(gradients(autoencoder), gradients(expected[0]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
