"""Winograd's convolution against torch's."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latentae.winograd import (
    suits_winograd,
    winograd_conv,
    winograd_input_gradient,
    winograd_weight,
    winograd_weight_gradient,
)


def test_a_weight_by_hand():
    # Outer products of (1, 2, 4): G g = (1, 3.5, 1.5, 4).
    side = torch.tensor([1.0, 2.0, 4.0])
    transformed = torch.tensor([1.0, 3.5, 1.5, 4.0])
    found = winograd_weight(torch.outer(side, side)[None, None])
    assert torch.equal(found.flatten(), torch.outer(transformed, transformed).flatten())


@pytest.mark.parametrize(
    "shape",
    [(2, 3, 6, 4), (1, 3, 5, 7), (1, 3, 1, 1), (1, 3, 2, 300), (2, 3, 37, 20), (9, 3, 8, 9)],
    ids=["even", "odd", "a pixel", "blocks of columns", "blocks of rows", "blocks of images"],
)
@pytest.mark.parametrize("bias", [True, False])
def test_values_are_those_of_a_convolution(shape, bias):
    torch.manual_seed(0)
    inputs = torch.randn(shape, dtype=torch.float64)
    weight = torch.randn(2, shape[1], 3, 3, dtype=torch.float64)
    shift = torch.randn(2, dtype=torch.float64) if bias else None
    expected = F.conv2d(inputs, weight, shift, padding=1)
    for order in (torch.contiguous_format, torch.channels_last):
        ordered = inputs.contiguous(memory_format=order)
        found = winograd_conv(ordered, winograd_weight(weight), shift)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(3, 3, 5, 4), (1, 3, 40, 40)])
def test_gradients_are_autograd_s(shape):
    torch.manual_seed(0)
    inputs = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    output = F.conv2d(inputs, weight, padding=1)
    gradient = torch.randn_like(output)
    expected = torch.autograd.grad(output, (inputs, weight), gradient)
    with torch.no_grad():
        of_inputs = winograd_input_gradient(gradient, winograd_weight(weight))
        of_weight = winograd_weight_gradient(inputs, gradient)
    torch.testing.assert_close((of_inputs, of_weight), expected, rtol=0, atol=1e-11)


def test_it_activates_its_inputs_but_not_the_padding():
    torch.manual_seed(0)
    inputs, weight = torch.randn(1, 3, 5, 4).double(), torch.randn(2, 3, 3, 3).double()
    expected = F.conv2d(F.silu(inputs), weight, padding=1)
    found = winograd_conv(inputs, winograd_weight(weight), None, activates=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_in_float32_it_is_as_exact_as_a_direct_convolution():
    torch.manual_seed(0)
    inputs, weight = torch.randn(1, 128, 16, 16), torch.randn(128, 128, 3, 3)
    exact = F.conv2d(inputs.double(), weight.double(), padding=1)
    direct = (F.conv2d(inputs, weight, padding=1) - exact).norm() / exact.norm()
    ours = (winograd_conv(inputs, winograd_weight(weight), None) - exact).norm() / exact.norm()
    assert ours < 2 * direct < 1e-5


@pytest.mark.parametrize(
    ("settings", "suits"),
    [
        ({}, True),
        ({"out_channels": 64}, False),
        ({"kernel_size": 1, "padding": 0}, False),
        ({"stride": 2}, False),
        ({"dilation": 2, "padding": 2}, False),
        ({"groups": 2}, False),
        ({"padding_mode": "reflect"}, False),
    ],
)
def test_what_it_suits(settings, suits):
    arguments = {"in_channels": 128, "out_channels": 128, "kernel_size": 3, "padding": 1} | settings
    conv = nn.Conv2d(**arguments, device="meta")
    assert suits_winograd(conv, torch.empty(2, 128, 16, 16)) is suits
    assert not suits_winograd(conv, torch.empty(2, 128, 14, 16))  # too few tiles
    assert not suits_winograd(conv, torch.empty(2, 128, 16, 16, dtype=torch.bfloat16))
