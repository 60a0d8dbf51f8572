import pytest
import torch
from diffusers.models.autoencoders.vae import VectorQuantizer as StockQuantizer

from latentae.quantizers import FiniteScalarQuantizer, VectorQuantizer, plain_quantizer
from tests.quantizers.conftest import draw, make


def test_losses_and_gradients_by_hand():
    quantizer = VectorQuantizer(2, 2, commitment_weight=0.25, codebook_weight=2.0)
    quantizer.embedding.weight.data = torch.tensor([[0.0, 0.0], [10.0, 10.0]])
    latents = torch.tensor([1.0, 2.0]).reshape(1, 2, 1, 1).requires_grad_()
    losses = quantizer(latents).losses
    # The squared distance is 1 + 4, its mean over two values 2.5.
    assert losses["codebook"].item() == pytest.approx(2.0 * 2.5)
    assert losses["commitment"].item() == pytest.approx(0.25 * 2.5)
    (losses["codebook"] + losses["commitment"]).backward()
    # d/dz of 0.25·mean((z − e)²) is 0.25·(z − e); d/de of 2·mean((e − z)²) is 2·(e − z).
    assert latents.grad.flatten().tolist() == pytest.approx([0.25, 0.5])
    assert quantizer.embedding.weight.grad.tolist() == [[-2.0, -4.0], [0.0, 0.0]]


@pytest.mark.parametrize("legacy", [False, True])
def test_either_order_of_the_loss_is_that_of_the_stock_quantizer(legacy):
    stock = StockQuantizer(16, 4, beta=0.25, legacy=legacy).double()
    quantizer = VectorQuantizer(16, 4, legacy_loss_order=legacy).double()
    quantizer.load_state_dict(stock.state_dict())
    latents = draw(2, 4, 5, 5, dtype=torch.float64).requires_grad_()
    weights = draw(2, 4, 5, 5, seed=1, dtype=torch.float64)
    results = []
    for module in (quantizer, stock):
        quantized, loss, _ = module(latents)
        objective = loss + (quantized * weights).sum()
        results.append((loss, *torch.autograd.grad(objective, (latents, module.embedding.weight))))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_table_written_out_gives_the_same_codes():
    for kind in ("vector", "ema", "cosine", "simvq"):
        quantizer = make(kind).eval()
        plain = plain_quantizer(quantizer)
        assert type(plain) is VectorQuantizer
        ours, theirs = plain(draw(2, 4, 8, 8)), quantizer(draw(2, 4, 8, 8))
        assert torch.equal(ours.indices, theirs.indices)
        assert torch.equal(ours.quantized, theirs.quantized)
        plain.embedding.weight.data.zero_()
        assert quantizer.embedding.weight.any()
    with pytest.raises(ValueError, match="codes of a FiniteScalarQuantizer are not the nearest ones"):
        plain_quantizer(FiniteScalarQuantizer([4, 4]))


def test_weights_below_zero():
    with pytest.raises(ValueError, match=r"codebook_weight is -1"):
        VectorQuantizer(4, 2, codebook_weight=-1)
