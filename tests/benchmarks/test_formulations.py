import copy

import torch

from benchmarks.formulations import diffusers_kl_steps, diffusers_vqgan_steps, taming_step
from benchmarks.textbook import textbook_step
from latentae.losses.adversarial import AdversarialTerms
from latentae.models import KLVAE
from tests.training.small_networks import assert_same_gradients, gradients, small_networks


def images():
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1


def test_taming_s_step_has_the_textbook_s_gradients():
    autoencoder, discriminator, objective = small_networks()
    expected = copy.deepcopy((autoencoder, discriminator))
    textbook_step(*expected, objective, AdversarialTerms(weight=0.8), images(), step=0)
    taming_step(autoencoder, discriminator, objective, images())
    assert_same_gradients(gradients(autoencoder, discriminator), gradients(*expected))


def test_diffusers_turns_teach_both_networks_and_fill_the_trunk_s_gradients():
    autoencoder, discriminator, objective = small_networks()
    trunk = list(objective.perceptual.net.requires_grad_())
    diffusers_vqgan_steps(autoencoder, discriminator, trunk, images())
    for network in (autoencoder, discriminator, *trunk):
        assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters() if parameter.ndim > 1)


def test_diffusers_kl_turns_reach_the_encoder():
    _, discriminator, objective = small_networks()
    torch.manual_seed(0)
    autoencoder = KLVAE(block_out_channels=(8,), norm_num_groups=4).double()
    diffusers_kl_steps(autoencoder, discriminator, objective.perceptual, images())
    assert autoencoder.encoder.conv_in.weight.grad.abs().sum() > 0
    assert discriminator.layers[0].weight.grad.abs().sum() > 0
