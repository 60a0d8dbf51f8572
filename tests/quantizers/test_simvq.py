import pytest
import torch
from vector_quantize_pytorch import SimVQ

from latentae.quantizers import SimVQuantizer
from tests.quantizers.conftest import draw, generator


@pytest.mark.parametrize("gradient", ["straight_through", "rotation"])
def test_values_and_gradients_equal_the_packages(gradient):
    ours = SimVQuantizer(32, 6, gradient=gradient, init="normal").double()
    theirs = SimVQ(
        dim=6,
        codebook_size=32,
        codebook_transform=torch.nn.Linear(6, 6),
        rotation_trick=gradient == "rotation",
        channel_first=True,
    ).double()
    theirs.frozen_codebook.copy_(ours.embedding.weight)
    theirs.code_transform.load_state_dict(ours.projection.state_dict())
    latents = draw(2, 6, 5, 5, dtype=torch.float64).requires_grad_()
    weights = draw(2, 6, 5, 5, seed=1, dtype=torch.float64)
    output = ours(latents)
    quantized, indices, loss = theirs(latents)
    assert torch.equal(output.indices, indices)
    torch.testing.assert_close(output.quantized, quantized)
    torch.testing.assert_close(output.loss, loss)
    ours_learned, theirs_learned = ours.projection, theirs.code_transform
    gradients = [
        torch.autograd.grad(total + (values * weights).sum(), (latents, linear.weight, linear.bias))
        for total, values, linear in (
            (output.loss, output.quantized, ours_learned),
            (loss, quantized, theirs_learned),
        )
    ]
    for own, other in zip(*gradients, strict=True):
        torch.testing.assert_close(own, other)


def test_a_step_moves_every_code_and_none_of_the_frozen_ones():
    quantizer = SimVQuantizer(16, 4)
    assert not quantizer.embedding.weight.requires_grad
    frozen, before = quantizer.embedding.weight.clone(), quantizer.euclidean_codebook().clone()
    optimizer = torch.optim.SGD([p for p in quantizer.parameters() if p.requires_grad], lr=1.0)
    quantizer(draw(1, 4, 2, 2)).loss.backward()  # four latents
    optimizer.step()
    assert torch.equal(quantizer.embedding.weight, frozen)
    assert (quantizer.euclidean_codebook() != before).any(dim=1).all()


def test_starts():
    published = SimVQuantizer(4096, 16, init="normal")
    assert published.embedding.weight.std().item() == pytest.approx(0.25, rel=0.02)
    assert not torch.equal(published.projection.weight, torch.eye(16))
    placed = SimVQuantizer(16, 4, init="data")
    placed.start(5 + draw(1, 4, 8, 8), generator())
    assert torch.equal(placed.projection.weight, torch.eye(4))
    assert placed.euclidean_codebook().mean().item() == pytest.approx(5, abs=0.5)


def test_a_code_is_put_where_it_is_wanted_behind_the_linear_layer():
    quantizer = SimVQuantizer(3, 2, init="normal")
    wanted = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    first = quantizer.euclidean_codebook()[0].clone()
    with torch.no_grad():
        quantizer.replace(torch.tensor([False, True, True]), wanted)
    torch.testing.assert_close(quantizer.euclidean_codebook(), torch.stack([first, wanted[1], wanted[2]]))


def test_a_linear_layer_without_an_inverse_leaves_codes_where_they_are():
    quantizer = SimVQuantizer(3, 2)
    quantizer.projection.weight.data.zero_()
    before = quantizer.embedding.weight.clone()
    with torch.no_grad():
        quantizer.replace(torch.ones(3, dtype=torch.bool), torch.ones(3, 2))
    assert torch.equal(quantizer.embedding.weight, before)
