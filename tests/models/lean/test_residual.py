import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latentae.models.lean import parts
from latentae.models.lean.residual import residual


def make(wide=6):
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
def test_values_and_gradients_are_autograd_s(monkeypatch, wide, adds, keeps_hidden, values):
    monkeypatch.setitem(parts._VALUES_AT_ONCE, "cpu", values)
    layers, inputs = make(wide), torch.randn(5, 6, 4, 3, dtype=torch.float64, requires_grad=True)

    def lean(x):
        return residual(x, layers, adds=adds, keeps_hidden=keeps_hidden)

    torch.testing.assert_close(lean(inputs), stock(inputs, layers, adds), rtol=0, atol=1e-12)
    expected = gradients(lambda x: stock(x, layers, adds), inputs, layers)
    torch.testing.assert_close(gradients(lean, inputs, layers), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("frozen", [0, 1, 2, 3])
def test_layers_that_do_not_learn(frozen):
    layers, inputs = make(), torch.randn(5, 6, 4, 3, dtype=torch.float64, requires_grad=True)
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
    layers, inputs, kept = make(), torch.randn(5, 6, 4, 3, dtype=torch.float64, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        residual(inputs, layers, adds=True, keeps_hidden=keeps_hidden)
    assert kept.count(inputs.shape) == number
    # Beside them means and 1/σ of both normalisations, and the layers' parameters.
    assert sum(shape != inputs.shape for shape in kept) == 4 + 8
