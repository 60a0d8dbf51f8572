import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D

from latentae.models.lean.attention import LeanAttentionProcessor
from latentae.models.lean.blocks import LeanResnetBlock2D, LeanUpsample2D


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_block_with_a_shortcut_and_an_output_scale(scale):
    torch.manual_seed(0)
    block = ResnetBlock2D(
        in_channels=4, out_channels=8, temb_channels=None, groups=2, output_scale_factor=scale
    ).double()
    inputs = torch.randn(2, 4, 5, 3, dtype=torch.float64, requires_grad=True)
    expected = block(inputs, None)
    (gradient,) = torch.autograd.grad(expected.square().sum(), inputs)
    assert LeanResnetBlock2D.fits(block)
    block.__class__ = LeanResnetBlock2D
    found = block(inputs, None)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), inputs)[0], gradient)


def test_a_time_embedding_does_not_fit():
    assert not LeanResnetBlock2D.fits(ResnetBlock2D(in_channels=4, temb_channels=8, groups=2))
    assert not LeanResnetBlock2D.fits(ResnetBlock2D(in_channels=4, temb_channels=None, groups=2, up=True))


def test_upsampling_of_other_kinds_does_not_fit():
    assert LeanUpsample2D.fits(Upsample2D(4, use_conv=True))
    assert not LeanUpsample2D.fits(Upsample2D(4))
    assert not LeanUpsample2D.fits(Upsample2D(4, use_conv_transpose=True))
    assert not LeanUpsample2D.fits(Upsample2D(4, use_conv=True, kernel_size=5, padding=2))


def test_a_given_output_size_is_kept():
    block = Upsample2D(4, use_conv=True)
    block.__class__ = LeanUpsample2D
    inputs = torch.randn(1, 4, 3, 3, requires_grad=True)
    assert block(inputs, output_size=(7, 5)).shape == (1, 4, 7, 5)


def make_attention(heads):
    torch.manual_seed(0)
    return Attention(
        8, heads=heads, dim_head=8 // heads, norm_num_groups=2, residual_connection=True, bias=True
    ).double()


@pytest.mark.parametrize("heads", [1, 2])
def test_it_is_the_stock_processor_s_function(heads):
    attention = make_attention(heads)
    inputs = torch.randn(2, 8, 3, 4, dtype=torch.float64, requires_grad=True)
    assert type(attention.processor) is AttnProcessor2_0
    wanted = [inputs, *attention.parameters()]
    expected = attention(inputs)
    expected_gradients = torch.autograd.grad(expected.square().sum(), wanted)
    assert LeanAttentionProcessor.fits(attention)
    attention.set_processor(LeanAttentionProcessor())
    found = attention(inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), wanted), expected_gradients)


def test_no_argument_of_the_stock_processor_is_unknown_to_it(caplog):
    attention = make_attention(1)
    attention.set_processor(LeanAttentionProcessor())
    inputs = torch.randn(1, 8, 2, 2, dtype=torch.float64)
    attention(inputs, temb=None)
    assert caplog.records == []


def test_other_attention_does_not_fit():
    assert not LeanAttentionProcessor.fits(Attention(8, heads=1, dim_head=8))
    assert not LeanAttentionProcessor.fits(torch.nn.Linear(8, 8))
