import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from latentae.discriminators import FrozenFeatures


class Pooled(nn.Module):
    """Two layers of a frozen network: pixels, and means of 2×2 of them."""

    channels = (3, 3)
    windows = (((2, 2),), ())

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0), requires_grad=False)

    def forward(self, images):
        return [self.scale * images, self.scale * nn.functional.avg_pool2d(images, 2)]


@pytest.fixture
def discriminator():
    torch.manual_seed(0)
    return FrozenFeatures(3, trunk=Pooled(), head_channels=16)


def test_every_head_has_the_grid_of_the_deepest_layer(discriminator):
    for side in (8, 9):
        assert discriminator(torch.randn(2, 3, side, side)).shape == (2, 2, 4, 4)


def test_a_head_is_that_of_stylegan_t(discriminator):
    """Calculated again, with each weight divided by its largest singular value."""
    discriminator.double().eval()
    discriminator.load_state_dict(converged(discriminator))
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    first, normalise, _, residual, last = discriminator.heads[1]
    hidden = nn.functional.avg_pool2d(2 * images, 2)

    def convolve(layer, values, padding=0):
        weight = layer.parametrizations.weight.original
        weight = weight / torch.linalg.matrix_norm(weight.flatten(1), 2)
        return nn.functional.conv2d(values, weight, layer.bias, padding=padding)

    def activate(layer, values):
        grouped = nn.functional.group_norm(values, 8, layer.weight, layer.bias)
        return torch.where(grouped > 0, grouped, 0.2 * grouped)

    hidden = activate(normalise, convolve(first, hidden))
    block = residual.layers
    hidden = (hidden + activate(block[1], convolve(block[0], hidden, padding=1))) / math.sqrt(2)
    torch.testing.assert_close(discriminator(images)[:, 1:], convolve(last, hidden), rtol=1e-6, atol=1e-8)


def converged(discriminator):
    """Its state after so many power iterations that they change nothing any more."""
    copied = copy.deepcopy(discriminator).train()
    for _ in range(500):
        copied(torch.zeros(1, 3, 8, 8, dtype=torch.float64))
    return copied.state_dict()


def test_only_heads_learn_and_are_saved(discriminator):
    assert all(name.startswith("heads.") for name in discriminator.state_dict())
    assert {id(p) for p in discriminator.parameters()} == {id(p) for p in discriminator.heads.parameters()}
    images = torch.randn(1, 3, 8, 8, requires_grad=True)
    discriminator(images).sum().backward()
    assert images.grad.abs().sum() > 0
    assert discriminator.trunk.scale.grad is None
    assert all(p.grad is not None for p in discriminator.parameters())


def test_the_frozen_network_follows(discriminator):
    discriminator.double()
    assert discriminator.trunk.scale.dtype == torch.float64
    other = copy.deepcopy(discriminator)
    other.trunk.scale.data.fill_(3.0)
    assert discriminator.trunk.scale == 2


def test_gradients_of_first_and_second_order(discriminator):
    """Against finite differences in float64, as R1 needs them."""
    discriminator.double().eval()  # power iterations would change it between calls
    images = torch.randn(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(discriminator, images, fast_mode=True)
    assert torch.autograd.gradgradcheck(discriminator, images, fast_mode=True)


def test_weights_are_at_unit_spectral_norm(discriminator):
    assert discriminator.forward_has_state
    convolutions = [layer for layer in discriminator.modules() if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 7
    assert all(is_parametrized(layer, "weight") for layer in convolutions)


def test_impossible_arguments():
    with pytest.raises(ValueError, match="in_channels is 4"):
        FrozenFeatures(4, trunk=Pooled())
    with pytest.raises(ValueError, match="head_channels is 24"):
        FrozenFeatures(trunk=Pooled(), head_channels=24)
