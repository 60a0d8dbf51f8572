import pytest
import torch
import torch.nn.functional as F

from latentae.models.lean.upsampling import doubled_conv, doubling_kernel


def test_the_doubling_kernel_adds_up_the_weights_that_meet_a_pixel():
    # One channel, one pixel of 1: its four copies each meet the whole 3×3 window, shifted.
    weight = torch.arange(1.0, 10.0).reshape(1, 1, 3, 3)
    pixel = torch.zeros(1, 1, 3, 3)
    pixel[..., 1, 1] = 1
    expected = F.conv2d(pixel.repeat_interleave(2, 2).repeat_interleave(2, 3), weight, padding=1)
    assert torch.equal(F.conv_transpose2d(pixel, doubling_kernel(weight), stride=2, padding=1), expected)
    assert doubling_kernel(weight).sum() == 4 * weight.sum()


@pytest.mark.parametrize("bias", [True, False])
def test_values_and_derivatives(bias):
    torch.manual_seed(0)
    inputs = torch.randn(2, 3, 4, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    shift = torch.randn(2, dtype=torch.float64, requires_grad=True) if bias else None
    doubled = inputs.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(
        doubled_conv(inputs, weight, shift), F.conv2d(doubled, weight, shift, padding=1), rtol=0, atol=1e-12
    )
    assert torch.autograd.gradcheck(doubled_conv, (inputs, weight, shift))


def test_the_input_and_the_small_kernel_are_all_that_is_kept():
    inputs, kept = torch.randn(1, 3, 4, 4), []
    weight = torch.randn(2, 3, 3, 3, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        doubled_conv(inputs, weight, None)
    assert kept == [inputs.shape, weight.shape]
