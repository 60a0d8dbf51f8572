import pytest
import torch
import torch.nn.functional as F

from latentae.quantizers import IBQuantizer
from tests.quantizers.conftest import draw


def published(latents, table, beta):
    """The paper's definition, with the one-hot matrices it speaks of."""
    flat = latents.permute(0, 2, 3, 1).reshape(-1, table.shape[1])
    probabilities = (flat @ table.T).softmax(dim=1)
    one_hot = F.one_hot(probabilities.argmax(dim=1), len(table)).to(flat)
    through = (one_hot + probabilities - probabilities.detach()) @ table
    hard = one_hot @ table
    loss = (
        (through - flat).square().mean()
        + (hard.detach() - flat).square().mean()
        + beta * (hard - flat.detach()).square().mean()
    )
    return through, loss, probabilities


def test_values_and_gradients_are_the_papers():
    quantizer = IBQuantizer(12, 4, codebook_weight=0.3).double()
    torch.nn.init.normal_(quantizer.embedding.weight)
    table = quantizer.embedding.weight
    latents = draw(2, 4, 3, 3, dtype=torch.float64).requires_grad_()
    weights = draw(18, 4, seed=1, dtype=torch.float64)
    output = quantizer(latents)
    rows = output.quantized.permute(0, 2, 3, 1).reshape(-1, 4)
    through, loss, probabilities = published(latents, table, 0.3)
    assert torch.equal(output.indices.flatten(), probabilities.argmax(dim=1))
    torch.testing.assert_close(rows, through)
    torch.testing.assert_close(output.loss, loss)
    for ours, theirs in (((rows * weights).sum(), (through * weights).sum()), (output.loss, loss)):
        got = torch.autograd.grad(ours, (latents, table), retain_graph=True)
        expected = torch.autograd.grad(theirs, (latents, table), retain_graph=True)
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other)


def test_every_code_gets_a_gradient():
    quantizer = IBQuantizer(64, 4)
    output = quantizer(draw(1, 4, 1, 1).requires_grad_())
    output.quantized.sum().backward()
    assert (quantizer.embedding.weight.grad != 0).any(dim=1).all()


def test_without_gradients_the_losses_are_the_same():
    quantizer = IBQuantizer(12, 4, entropy_weight=0.5)
    latents = draw(2, 4, 3, 3)
    with torch.no_grad():
        without = quantizer(latents)
    assert torch.equal(without.quantized, quantizer(latents).quantized)
    torch.testing.assert_close(without.loss, quantizer(latents).loss)


def test_the_entropy_penalty_by_hand():
    quantizer = IBQuantizer(2, 1, entropy_weight=2.0, temperature=1.0)
    quantizer.embedding.weight.data = torch.tensor([[0.0], [1.0]])
    # Products (0, ±log 3): choices (1/4, 3/4) and (3/4, 1/4), whose mean is even.
    latents = torch.tensor([3.0, 1 / 3]).log().reshape(1, 1, 1, 2)
    each = -(0.25 * torch.tensor(0.25).log() + 0.75 * torch.tensor(0.75).log())
    expected = 2.0 * (each - torch.tensor(2.0).log())
    torch.testing.assert_close(quantizer(latents).losses["entropy"], expected)


def test_impossible_arguments():
    with pytest.raises(ValueError, match="temperature is 0, but must be positive"):
        IBQuantizer(4, 2, temperature=0)
