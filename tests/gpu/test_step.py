"""The training step of every family, in the precisions of a GPU, against the CPU's gradients in float64."""

import copy

import pytest
import torch
from accelerate.utils import convert_outputs_to_fp32

from latentae.discriminators import DiffAugment, PatchGAN
from latentae.losses.adversarial import R1, AdversarialTerms, LeCAM
from latentae.losses.kl import KLRegulariser
from latentae.losses.reconstruction import ReconstructionObjective, l1
from latentae.models import KLVAE
from latentae.models.lean import make_lean
from latentae.training.adversary import Adversary
from latentae.training.latent_losses import LatentLosses
from latentae.training.randomness import StepRandomness
from latentae.training.step import TrainingStep
from tests.models.test_exact_tiling import MODELS
from tests.training.small_networks import FeatureDistance, gradients

PRECISIONS = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
# The largest distance from float64's gradients, as a share of their norm. In half precision a few latents
# choose another code than in float64, and the images they decode to differ by more than rounding.
WITH_CODES = {"float32": 1e-4, "bf16": 0.5, "fp16": 0.25}
WITHOUT_CODES = {"float32": 1e-4, "bf16": 0.15, "fp16": 0.06}
SCALE = {"fp16": 256.0}


def networks(family):
    torch.manual_seed(0)
    autoencoder = MODELS[family]().train().requires_grad_()
    discriminator = PatchGAN(3, base_channels=8, num_layers=1)
    for parameter in discriminator.parameters():  # see small_networks
        parameter.data.mul_(5)
    objective = ReconstructionObjective(l1, perceptual=FeatureDistance(), perceptual_weight=0.5)
    return autoencoder, discriminator, objective


def as_accelerate_wraps(module, device, dtype):
    if dtype is not None:
        module.forward = convert_outputs_to_fp32(torch.autocast(device.type, dtype)(module.forward))


def gradients_of_a_step(family_networks, device, precision, step=3):
    autoencoder, discriminator, objective = (module.to(device) for module in family_networks)
    samples = isinstance(autoencoder, KLVAE)
    scale, dtype = SCALE.get(precision, 1.0), next(autoencoder.parameters()).dtype
    for network in (autoencoder, discriminator):
        as_accelerate_wraps(network, device, PRECISIONS.get(precision))
    adversary = Adversary(
        discriminator,
        AdversarialTerms(weight=0.7),
        augmentation=DiffAugment(["color", "translation"]),
        lecam=LeCAM(0.1).to(device),
        r1=R1(0.01, every=1),
        loss_scale=(lambda value: value * scale) if precision == "fp16" else None,
    )
    training_step = TrainingStep(
        autoencoder,
        autoencoder.last_layer,
        objective,
        adversary,
        regulariser=KLRegulariser(1e-3) if samples else None,
        latent_losses=LatentLosses(autoencoder.downsampling_factor, autoencoder.upscale),
        latents_shape=autoencoder.latents_shape if samples else None,
        output_gain=autoencoder.output_gain,
        backward=lambda loss: (loss * scale).backward(),
    )
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    result = training_step(images.to(device, dtype), StepRandomness(0, step, device=device))
    assert all(torch.isfinite(value) for value in result.losses.values())
    found = [gradients(network) for network in (autoencoder, discriminator)]
    return [torch.cat([g.double().flatten().cpu() / scale for g in own if g is not None]) for own in found]


def relative_distance(found, expected):
    return (found - expected).norm() / expected.norm()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", MODELS)
def test_gradients_are_those_of_float64_on_the_cpu(family, precision, device):
    given = networks(family)
    exact = gradients_of_a_step([copy.deepcopy(each).double() for each in given], torch.device("cpu"), "")
    found = gradients_of_a_step(given, device, precision)
    limits = WITH_CODES if hasattr(given[0], "quantize") else WITHOUT_CODES
    for ours, expected in zip(found, exact, strict=True):
        assert expected.norm() > 0
        assert relative_distance(ours, expected) < limits[precision]


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("channels", [0, 8])
def test_lean_blocks_have_the_stock_ones_gradients(channels, precision, order, device):
    """The reference is float64, so that neither side's rounding counts as the truth."""
    family = "kl, attention in a level"
    stock, lean = networks(family), networks(family)
    exact = gradients_of_a_step([copy.deepcopy(each).double() for each in stock], torch.device("cpu"), "")
    assert make_lean(lean[0], recomputed_channels=channels) > 0
    errors = []
    for each in (stock, lean):
        for network in each:
            network.to(memory_format=order)
        errors.append(relative_distance(gradients_of_a_step(each, device, precision)[0], exact[0]))
    assert errors[1] < WITHOUT_CODES[precision]
    assert errors[1] < 2 * errors[0] + 1e-6
