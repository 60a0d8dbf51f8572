import pytest
import torch
from torch import Tensor, nn

from latentae.losses.feature_distance import distance, distance_and_gradient, feature_distance


def network() -> list[nn.Sequential]:
    """All that a network may have: strides, overlapping windows, features before both."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return [
            nn.Sequential(nn.Conv2d(3, 4, 5, stride=2, padding=1), nn.ReLU()),
            nn.Sequential(
                nn.MaxPool2d(3, 2), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU()
            ),
            nn.Sequential(nn.Conv2d(6, 5, 1), nn.ReLU()),
        ]


def by_autograd(slices: list[nn.Sequential], heads: list[Tensor], images: Tensor, target: Tensor) -> Tensor:
    total = torch.zeros(len(images), dtype=images.dtype)
    for layers, head in zip(slices, heads, strict=True):
        images, target = layers(images), layers(target)
        units = [features / (features.norm(dim=1, keepdim=True) + 1e-10) for features in (images, target)]
        total = total + (head[:, None, None] * (units[0] - units[1]) ** 2).sum(dim=1).mean(dim=(1, 2))
    return total


def test_distance_and_gradient_are_autograds() -> None:
    slices = [layers.double().requires_grad_(False) for layers in network()]
    generator = torch.Generator().manual_seed(1)
    heads = [torch.rand(channels, generator=generator).double() for channels in (4, 6, 5)]
    images, target = torch.randn(2, 2, 3, 21, 26, generator=generator).double()
    leaf = images.clone().requires_grad_()
    expected = by_autograd(slices, heads, leaf, target)
    (slope,) = torch.autograd.grad(expected.sum(), leaf)
    value, gradient = distance_and_gradient(slices, heads, images, target)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, slope, rtol=1e-9, atol=1e-14)
    assert torch.equal(distance(slices, heads, images, target), value)


def test_the_derivative_is_that_of_the_formula() -> None:
    generator = torch.Generator().manual_seed(2)
    features, direction = torch.randn(2, 2, 5, 3, 4, generator=generator, dtype=torch.float64)
    head = torch.rand(5, generator=generator, dtype=torch.float64)
    features.relu_().requires_grad_()
    unit = features / features.norm(dim=1, keepdim=True)
    expected = (head[:, None, None] * (unit - direction) ** 2).sum(dim=1).mean(dim=(1, 2))
    (slope,) = torch.autograd.grad(expected.sum(), features)
    features = features.detach()
    distance, differentiate = feature_distance(features, direction, head)
    torch.testing.assert_close(distance, expected)
    assert (features == 0).any()  # where the derivative of the ReLU before takes part
    torch.testing.assert_close(differentiate(), slope * (features > 0), rtol=0, atol=2e-6)


def test_where_nothing_is_seen_the_derivative_is_zero() -> None:
    _, differentiate = feature_distance(torch.zeros(1, 2, 1, 1), torch.ones(1, 2, 1, 1), torch.ones(2))
    assert differentiate().flatten().tolist() == [0.0, 0.0]


def test_a_network_of_other_layers_is_refused() -> None:
    slices = [nn.Sequential(nn.Conv2d(3, 2, 1), nn.Sigmoid())]
    with pytest.raises(TypeError, match="the network has a Sigmoid: give convolutions, ReLUs"):
        distance_and_gradient(slices, [torch.ones(2)], *torch.rand(2, 1, 3, 4, 4))
