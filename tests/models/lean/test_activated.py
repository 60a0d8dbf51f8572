import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latentae.models.lean import parts
from latentae.models.lean.activated import activate, activated_conv


@pytest.fixture
def layers():
    torch.manual_seed(0)
    norm = nn.GroupNorm(2, 6).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def inputs():
    return torch.randn(2, 6, 4, 3, dtype=torch.float64, requires_grad=True)


def test_the_activation_comes_with_its_statistics(layers):
    x = inputs().detach()
    activated, mean, rstd = activate(x, layers)
    assert torch.equal(activated, F.silu(layers(x)))
    groups = x.reshape(2, 2, 3 * 12)
    torch.testing.assert_close(mean, groups.mean(dim=2))
    torch.testing.assert_close(rstd, (groups.var(dim=2, unbiased=False) + layers.eps).rsqrt())


@pytest.mark.parametrize("conv", [nn.Conv2d(6, 4, 3, 1, 1), nn.Conv2d(6, 4, 3, 2, 0, bias=False)])
def test_the_derivative_with_a_convolution(layers, conv):
    x, conv = inputs(), conv.double()
    torch.testing.assert_close(activated_conv(x, layers, conv), conv(F.silu(layers(x))), rtol=0, atol=1e-12)
    parameters = [p for p in (x, layers.weight, layers.bias, conv.weight, conv.bias) if p is not None]

    def function(*_):
        return activated_conv(x, layers, conv)

    assert torch.autograd.gradcheck(function, parameters)


def test_another_memory_order_is_taken_as_well(layers):
    conv = nn.Conv2d(6, 4, 3, 1, 1).double()
    x = inputs().detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    expected = torch.autograd.grad(conv(F.silu(layers(x))).square().sum(), [x, *conv.parameters()])
    found = torch.autograd.grad(activated_conv(x, layers, conv).square().sum(), [x, *conv.parameters()])
    torch.testing.assert_close(found, expected)


def test_only_the_input_and_statistics_are_kept(layers):
    conv, x, kept = nn.Conv2d(6, 4, 3, 1, 1).double(), inputs(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        activated_conv(x, layers, conv)
    assert [shape for shape in kept if shape.numel() >= x.numel() and len(shape) == 4] == [
        x.shape,
        conv.weight.shape,
    ]


def test_a_batch_in_parts_has_the_gradient_of_the_whole(layers, monkeypatch):
    conv = nn.Conv2d(6, 4, 3, 1, 1).double()
    x = torch.randn(5, 6, 4, 3, dtype=torch.float64, requires_grad=True)
    wanted = [x, *layers.parameters(), *conv.parameters()]
    whole = torch.autograd.grad(activated_conv(x, layers, conv).square().sum(), wanted)
    monkeypatch.setitem(parts._VALUES_AT_ONCE, "cpu", 2 * 6 * 4 * 3)  # two images, then two, then one
    found = torch.autograd.grad(activated_conv(x, layers, conv).square().sum(), wanted)
    torch.testing.assert_close(found, whole, rtol=1e-12, atol=1e-12)
