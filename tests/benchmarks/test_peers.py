import copy

import torch

from benchmarks.peers import (
    diffusers_kl_steps,
    diffusers_vqgan_steps,
    packaged_lpips,
    taming_step,
    textbook_step,
    with_taming_blocks,
)
from latentae.losses.adversarial import AdversarialTerms
from latentae.losses.perceptual import LPIPS
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


def test_with_taming_s_blocks_the_function_is_the_same():
    autoencoder, *_ = small_networks()
    taming = with_taming_blocks(autoencoder)
    assert {"TamingResnetBlock", "TamingSwish"} < {type(module).__name__ for module in taming.modules()}
    assert "TamingSwish" not in {type(module).__name__ for module in autoencoder.modules()}
    torch.testing.assert_close(taming(images()).sample, autoencoder(images()).sample, rtol=0, atol=1e-12)


def test_the_package_s_lpips_has_our_weights(alexnet_trunk):
    ours = LPIPS(alexnet_trunk)
    first, second = images().float().repeat_interleave(4, 2).repeat_interleave(4, 3).chunk(2)
    package = packaged_lpips(ours)
    torch.testing.assert_close(package(first, second).flatten(), ours(first, second), rtol=1e-5, atol=1e-6)
    assert not package.training
