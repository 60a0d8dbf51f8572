import pytest
import torch
from torch import nn

from latentae.training.diagnosis import diagnose


class Overflow(nn.Module):
    def forward(self, x):
        return x * float("inf")


@pytest.fixture
def network():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    nn.init.constant_(net[0].weight, 3.0)
    return net


def test_the_first_layer_with_an_output_that_is_not_finite(network):
    network.insert(2, Overflow())
    found = diagnose(network, torch.ones(1, 2))
    assert found.layer == "2"
    assert found.weights == []
    assert [name for name, _ in found.largest] == ["0", "1"]
    assert "not finite from 2 on" in str(found)


def test_a_weight(network):
    network[2].bias.data[0] = float("nan")
    found = diagnose(network, torch.ones(1, 2))
    assert found.weights == ["2.bias"]
    assert found.layer == "2"


def test_nothing_is_wrong(network):
    found = diagnose(network, torch.ones(1, 2))
    assert found.layer is None
    assert found.largest[0][1] == pytest.approx(6.0, abs=1.5)
    assert str(found).splitlines()[0] == "weights: all finite"
    assert not any(module._forward_hooks for module in network)
