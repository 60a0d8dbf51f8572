import pytest
import torch
from torch import nn

from latentae.losses.adaptive import adaptive_weight, last_layer_gradient


@pytest.mark.parametrize("crop", [0, 3])
def test_last_layer_gradient_is_autograds(crop):
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 3, 3, padding=1).double()
    inputs = torch.randn(2, 4, 9, 11, dtype=torch.float64)
    output = layer(inputs)
    output = output[..., : output.shape[-2] - crop, : output.shape[-1] - crop]
    output_gradient = torch.randn_like(output)
    expected = torch.autograd.grad(output, layer.weight, output_gradient)[0]
    actual = last_layer_gradient(layer, inputs, output_gradient)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_last_layer_gradient_of_half_precision_inputs_is_in_float32():
    layer = nn.Conv2d(2, 3, 3, padding=1)
    gradient = last_layer_gradient(layer, torch.randn(1, 2, 5, 5).bfloat16(), torch.randn(1, 3, 5, 5))
    assert gradient.dtype == torch.float32


def test_adaptive_weight_by_hand():
    assert adaptive_weight(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0])).item() == pytest.approx(
        5 / 2.0001
    )
    assert adaptive_weight(torch.tensor([3.0]), torch.tensor([0.0]), maximum=7.0).item() == 7.0
    assert adaptive_weight(torch.zeros(3), torch.ones(3)).item() == 0.0
    assert adaptive_weight(torch.zeros(3), torch.ones(3), minimum=0.1).item() == pytest.approx(0.1)
