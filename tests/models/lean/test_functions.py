"""The functions behind the lean blocks, against autograd on the stock layers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latentae import winograd
from latentae.models.lean import functions
from latentae.models.lean.functions import (
    activate,
    activated_conv,
    add_gradients,
    computing_dtype,
    normalisation_gradient,
    normalise,
    normalise_again,
    residual,
    split_batch,
)


def kept_shapes(function):
    """Shapes of the tensors that autograd keeps while the function runs."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        function()
    return kept


@pytest.mark.parametrize(("values", "sizes"), [(24, [2, 2, 1]), (35, [2, 2, 1]), (1, [1] * 5), (10**6, [5])])
def test_parts_hold_as_many_images_as_values_allow(monkeypatch, values, sizes):
    monkeypatch.setitem(functions._VALUES_AT_ONCE, "cpu", values)
    batch = torch.zeros(5, 3, 2, 2)
    slices = split_batch(batch)
    assert [len(batch[part]) for part in slices] == sizes


def test_a_batch_without_images_has_no_parts():
    assert split_batch(torch.zeros(0, 3, 2, 2)) == []


def test_sums_begin_with_what_is_there():
    first = torch.ones(2)
    assert add_gradients(None, None) is None
    assert add_gradients(None, first) is first
    assert add_gradients(first, None) is first
    assert add_gradients(first, torch.tensor([1.0, 2.0])) is first
    assert first.tolist() == [2.0, 3.0]


def test_normalisation_by_hand():
    # Two groups of one channel: (0, 2) has mean 1 and σ 1; (1, 7) has mean 4 and σ 3.
    norm = nn.GroupNorm(2, 2, eps=0.0)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0]))
        norm.bias.copy_(torch.tensor([0.0, 10.0]))
    inputs = torch.tensor([[[0.0, 2.0], [1.0, 7.0]]])
    normalised, mean, rstd = normalise(inputs, norm)
    torch.testing.assert_close(normalised, torch.tensor([[[-1.0, 1.0], [8.0, 12.0]]]))
    torch.testing.assert_close(mean, torch.tensor([[1.0, 4.0]]))
    torch.testing.assert_close(rstd, torch.tensor([[1.0, 1 / 3]]))
    torch.testing.assert_close(normalise_again(inputs, mean, rstd, norm.weight, norm.bias), normalised)


def test_again_and_backward_are_those_of_the_module():
    torch.manual_seed(0)
    norm = nn.GroupNorm(3, 6).double()
    nn.init.normal_(norm.weight)
    inputs = torch.randn(2, 6, 3, 5, dtype=torch.float64, requires_grad=True)
    expected = norm(inputs)
    _, mean, rstd = normalise(inputs, norm)
    found = normalise_again(inputs, mean, rstd, norm.weight, norm.bias)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    slope = torch.randn_like(expected)
    gradients = normalisation_gradient(slope, inputs.detach(), mean, rstd, norm.weight, [True] * 3)
    torch.testing.assert_close(
        gradients, torch.autograd.grad(expected, [inputs, norm.weight, norm.bias], slope)
    )


def test_on_a_cpu_it_computes_in_the_dtype_of_its_inputs():
    assert computing_dtype(torch.zeros(1, dtype=torch.bfloat16), torch.zeros(1)) == torch.bfloat16
    assert computing_dtype(torch.zeros(1, device="meta"), torch.zeros(1).double()) == torch.float64


@pytest.fixture
def norm():
    torch.manual_seed(0)
    norm = nn.GroupNorm(2, 6).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def inputs():
    return torch.randn(2, 6, 4, 3, dtype=torch.float64, requires_grad=True)


def test_the_activation_comes_with_its_statistics(norm):
    x = inputs().detach()
    activated, mean, rstd = activate(x, norm)
    assert torch.equal(activated, F.silu(norm(x)))
    groups = x.reshape(2, 2, 3 * 12)
    torch.testing.assert_close(mean, groups.mean(dim=2))
    torch.testing.assert_close(rstd, (groups.var(dim=2, unbiased=False) + norm.eps).rsqrt())


@pytest.mark.parametrize("conv", [nn.Conv2d(6, 4, 3, 1, 1), nn.Conv2d(6, 4, 3, 2, 0, bias=False)])
def test_the_derivative_with_a_convolution(norm, conv):
    x, conv = inputs(), conv.double()
    torch.testing.assert_close(activated_conv(x, norm, conv), conv(F.silu(norm(x))), rtol=0, atol=1e-12)
    parameters = [p for p in (x, norm.weight, norm.bias, conv.weight, conv.bias) if p is not None]

    def function(*_):
        return activated_conv(x, norm, conv)

    assert torch.autograd.gradcheck(function, parameters)


def test_another_memory_order_is_taken_as_well(norm):
    conv = nn.Conv2d(6, 4, 3, 1, 1).double()
    x = inputs().detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    expected = torch.autograd.grad(conv(F.silu(norm(x))).square().sum(), [x, *conv.parameters()])
    found = torch.autograd.grad(activated_conv(x, norm, conv).square().sum(), [x, *conv.parameters()])
    torch.testing.assert_close(found, expected)


def test_only_the_input_and_statistics_are_kept(norm):
    conv, x = nn.Conv2d(6, 4, 3, 1, 1).double(), inputs()
    kept = kept_shapes(lambda: activated_conv(x, norm, conv))
    assert [shape for shape in kept if shape.numel() >= x.numel() and len(shape) == 4] == [
        x.shape,
        conv.weight.shape,
    ]


def test_a_batch_in_parts_has_the_gradient_of_the_whole(norm, monkeypatch):
    conv = nn.Conv2d(6, 4, 3, 1, 1).double()
    x = torch.randn(5, 6, 4, 3, dtype=torch.float64, requires_grad=True)
    wanted = [x, *norm.parameters(), *conv.parameters()]
    whole = torch.autograd.grad(activated_conv(x, norm, conv).square().sum(), wanted)
    monkeypatch.setitem(functions._VALUES_AT_ONCE, "cpu", 2 * 6 * 4 * 3)  # two images, then two, then one
    found = torch.autograd.grad(activated_conv(x, norm, conv).square().sum(), wanted)
    torch.testing.assert_close(found, whole, rtol=1e-12, atol=1e-12)


def make_layers(wide=6):
    torch.manual_seed(0)
    layers = (
        nn.GroupNorm(2, 6),
        nn.Conv2d(6, wide, 3, 1, 1),
        nn.GroupNorm(3, wide),
        nn.Conv2d(wide, wide, 3, 1, 1),
    )
    for layer in layers:
        nn.init.normal_(layer.weight, std=0.5)
        nn.init.normal_(layer.bias)
    return tuple(layer.double() for layer in layers)


def stock(inputs, layers, adds):
    norm1, conv1, norm2, conv2 = layers
    hidden = conv2(F.silu(norm2(conv1(F.silu(norm1(inputs))))))
    return inputs + hidden if adds else hidden


def gradients(function, inputs, layers):
    weights = torch.randn(5, 1, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    wanted = [inputs, *(parameter for layer in layers for parameter in layer.parameters())]
    return torch.autograd.grad((function(inputs) * weights).sum(), wanted)


@pytest.mark.parametrize("keeps_hidden", [True, False])
@pytest.mark.parametrize(("wide", "adds"), [(6, True), (6, False), (9, False)])
@pytest.mark.parametrize("values", [2**20, 2 * 6 * 4 * 3])  # the whole batch, or two images, two, one
@pytest.mark.parametrize("is_wide", [False, True])
def test_values_and_gradients_are_autograd_s(monkeypatch, wide, adds, keeps_hidden, values, is_wide):
    monkeypatch.setitem(functions._VALUES_AT_ONCE, "cpu", values)
    if is_wide:  # enough for Winograd's convolution
        monkeypatch.setattr(functions, "_LEAST_WINOGRAD_CHANNELS", 1)
        monkeypatch.setattr(winograd, "_LEAST_CHANNELS", 1)
        monkeypatch.setattr(winograd, "_LEAST_TILES", 1)
    layers, inputs = make_layers(wide), torch.randn(5, 6, 4, 3, dtype=torch.float64, requires_grad=True)

    def lean(x):
        return residual(x, layers, adds=adds, keeps_hidden=keeps_hidden)

    torch.testing.assert_close(lean(inputs), stock(inputs, layers, adds), rtol=0, atol=1e-12)
    expected = gradients(lambda x: stock(x, layers, adds), inputs, layers)
    torch.testing.assert_close(gradients(lean, inputs, layers), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("frozen", [0, 1, 2, 3])
@pytest.mark.parametrize("least", [1, 128])
def test_layers_that_do_not_learn(frozen, least, monkeypatch):
    monkeypatch.setattr(functions, "_LEAST_WINOGRAD_CHANNELS", least)
    monkeypatch.setattr(winograd, "_LEAST_CHANNELS", least)
    monkeypatch.setattr(winograd, "_LEAST_TILES", least)
    layers, inputs = make_layers(), torch.randn(5, 6, 4, 3, dtype=torch.float64, requires_grad=True)
    for layer in layers[: frozen + 1]:
        layer.requires_grad_(False)
    found = []
    for function in (residual, lambda x, layers, adds, **_: stock(x, layers, adds)):
        for given in (inputs, inputs.detach()):
            output = function(given, layers, adds=True, keeps_hidden=True)
            if not output.requires_grad:
                continue
            wanted = [
                t for t in (given, *(p for layer in layers for p in layer.parameters())) if t.requires_grad
            ]
            found.append(torch.autograd.grad(output.square().sum(), wanted))
    torch.testing.assert_close(found[: len(found) // 2], found[len(found) // 2 :], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("keeps_hidden", "number"), [(True, 2), (False, 1)])
def test_what_is_kept_of_the_activations(keeps_hidden, number):
    layers, inputs = make_layers(), torch.randn(5, 6, 4, 3, dtype=torch.float64, requires_grad=True)
    kept = kept_shapes(lambda: residual(inputs, layers, adds=True, keeps_hidden=keeps_hidden))
    assert kept.count(inputs.shape) == number
    # The others are means and 1/σ of both normalisations, and the layers' parameters.
    assert sum(shape != inputs.shape for shape in kept) == 4 + 8
