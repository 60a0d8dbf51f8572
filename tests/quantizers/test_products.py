import pytest
import torch

from latentae.quantizers import IBQuantizer, SimVQuantizer
from latentae.quantizers.products import precise_product, products_are_reduced
from tests.quantizers.conftest import draw


@pytest.fixture(params=["high", "medium"])
def reduced(request):
    """torch's permission to multiply float32 in TensorFloat-32 or bfloat16."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield
    torch.set_float32_matmul_precision(before)


def pair():
    left, right = draw(1, 64, 30, 30)[0].flatten(1), draw(1, 900, 7, 7, seed=1)[0].flatten(1)
    return left, right


def test_float32_is_left_alone_where_torch_keeps_it():
    left, right = pair()
    assert not products_are_reduced(left.device)
    assert torch.equal(precise_product(left, right), left @ right)


def test_float64_stands_in_where_torch_may_round(reduced):
    left, right = (value.requires_grad_() for value in pair())
    assert products_are_reduced(left.device)
    product = precise_product(left, right)
    assert product.dtype == torch.float32
    assert torch.equal(product, (left.double() @ right.double()).float())
    gradients = torch.autograd.grad(product.sum(), (left, right))
    torch.testing.assert_close(gradients[0], right.sum(dim=1).expand_as(left))
    torch.testing.assert_close(gradients[1], left.sum(dim=0)[:, None].expand_as(right))


def test_an_environment_variable_of_cuda_counts_too(monkeypatch):
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    assert products_are_reduced(torch.device("cuda"))
    assert not products_are_reduced(torch.device("cpu"))
    assert not products_are_reduced(torch.device("mps"))


@pytest.mark.parametrize("make", [IBQuantizer, SimVQuantizer])
def test_codes_depend_on_no_setting(make, reduced, monkeypatch):
    """With products that are rounded to bfloat16, as some processors do where they are allowed to."""
    torch.manual_seed(0)
    quantizer = make(512, 8).eval()
    torch.nn.init.normal_(quantizer.embedding.weight)
    if isinstance(quantizer, SimVQuantizer):
        torch.nn.init.normal_(quantizer.projection.weight)
    latents = draw(2, 8, 16, 16)
    precise = make(512, 8).eval().double()
    precise.load_state_dict(quantizer.state_dict())
    expected = precise.indices(latents.double())
    multiply = torch.Tensor.__matmul__

    def rounded(left, right):
        if left.dtype == torch.float32:
            return multiply(left.bfloat16().float(), right.bfloat16().float())
        return multiply(left, right)

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    assert torch.equal(quantizer.indices(latents), expected)
    codes = quantizer.codes(expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer.codes(expected), codes)
        assert torch.equal(quantizer.indices(latents), expected)
