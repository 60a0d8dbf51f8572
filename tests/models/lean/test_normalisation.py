import torch
from torch import nn

from latentae.models.lean.normalisation import (
    computing_dtype,
    normalisation_gradient,
    normalise,
    normalise_again,
)


def test_by_hand():
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
