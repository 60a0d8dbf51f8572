import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0

from latentae.models.lean.attention import LeanAttentionProcessor


def make(heads):
    torch.manual_seed(0)
    return Attention(
        8, heads=heads, dim_head=8 // heads, norm_num_groups=2, residual_connection=True, bias=True
    ).double()


@pytest.mark.parametrize("heads", [1, 2])
def test_it_is_the_stock_processor_s_function(heads):
    attention = make(heads)
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
    attention = make(1)
    attention.set_processor(LeanAttentionProcessor())
    inputs = torch.randn(1, 8, 2, 2, dtype=torch.float64)
    attention(inputs, temb=None)
    assert caplog.records == []


def test_other_attention_does_not_fit():
    assert not LeanAttentionProcessor.fits(Attention(8, heads=1, dim_head=8))
    assert not LeanAttentionProcessor.fits(torch.nn.Linear(8, 8))
