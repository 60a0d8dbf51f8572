"""Doubling and a 3×3 convolution in one, against the two operations."""

import pytest
import torch
import torch.nn.functional as F

from latentae.models.lean import doubling
from latentae.models.lean.doubling import (
    doubled_by_products,
    doubled_conv,
    doubling_kernel,
    doubling_products,
)


def test_the_doubling_kernel_adds_up_the_weights_that_meet_a_pixel():
    # One channel, one pixel of 1: its four copies each meet the whole 3×3 window, shifted.
    weight = torch.arange(1.0, 10.0).reshape(1, 1, 3, 3)
    pixel = torch.zeros(1, 1, 3, 3)
    pixel[..., 1, 1] = 1
    expected = F.conv2d(pixel.repeat_interleave(2, 2).repeat_interleave(2, 3), weight, padding=1)
    assert torch.equal(F.conv_transpose2d(pixel, doubling_kernel(weight), stride=2, padding=1), expected)
    assert doubling_kernel(weight).sum() == 4 * weight.sum()


@pytest.mark.parametrize("bias", [True, False])
def test_doubling_values_and_derivatives(bias):
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
    inputs = torch.randn(1, 3, 4, 4)
    weight = torch.randn(2, 3, 3, 3, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
        doubled_conv(inputs, weight, None)
    assert kept == [inputs.shape, weight.shape]


def test_products_by_hand():
    # One channel, the kernel 1 to 9. A quarter of the image is its first pixel's copy at the upper left: it
    # sees itself four times, through 5, 6, 8 and 9, and beyond the edge zeros.
    weight = torch.arange(1.0, 10.0).reshape(1, 1, 3, 3)
    whole, of_rows, of_columns, of_both = doubling_products(weight)
    assert [whole.tolist(), of_rows.tolist(), of_columns.tolist()] == [[[45]], [[-6, 24]], [[-12, 18]]]
    assert of_both.tolist() == [[1, -3, -7, 9]]
    pixel = torch.ones(1, 1, 1, 1)
    doubled = doubled_by_products(pixel, doubling_products(weight), None)
    assert doubled.tolist() == [[[[28, 24], [16, 12]]]]


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (1, 3, 1, 1), (1, 3, 1, 6)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("at_once", [1, 2**19])
def test_products_have_the_values_of_both_operations(shape, bias, at_once, monkeypatch):
    monkeypatch.setattr(doubling, "_VALUES_AT_ONCE", at_once)  # row by row, or all rows
    torch.manual_seed(0)
    inputs = torch.randn(shape, dtype=torch.float64)
    weight = torch.randn(2, 3, 3, 3, dtype=torch.float64)
    shift = torch.randn(2, dtype=torch.float64) if bias else None
    doubled = inputs.repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = F.conv2d(doubled, weight, shift, padding=1)
    found = doubled_by_products(inputs, doubling_products(weight), shift)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert found.is_contiguous(memory_format=torch.channels_last)
