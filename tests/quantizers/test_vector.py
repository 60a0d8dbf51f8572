import pytest
import torch
from vector_quantize_pytorch import SimVQ, VectorQuantize

from latentae.quantizers import CosineQuantizer, SimVQuantizer
from tests.quantizers.conftest import draw, generator

# Codes on the unit sphere


def test_a_code_is_chosen_by_its_direction_alone():
    quantizer = CosineQuantizer(2, 2)
    quantizer.embedding.weight.data = torch.tensor([[5.0, 0.0], [0.0, 0.1]])
    output = quantizer(torch.tensor([[0.2, 30.0], [0.1, 40.0]]).reshape(1, 2, 1, 2))
    assert output.indices.tolist() == [[[0, 1]]]
    assert output.quantized.squeeze().T.tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_the_losses_of_unit_vectors_by_hand():
    quantizer = CosineQuantizer(1, 2, codebook_weight=2.0)
    quantizer.embedding.weight.data = torch.tensor([[7.0, 0.0]])
    losses = quantizer(torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1)).losses
    # (0.6, 0.8) against (1, 0): squares 0.16 and 0.64, their mean 0.4.
    assert losses["codebook"].item() == pytest.approx(0.8)
    assert losses["commitment"].item() == pytest.approx(0.1)


def test_the_cosine_quantizer_equals_the_packages():
    theirs = (
        VectorQuantize(
            dim=8, codebook_size=32, use_cosine_sim=True, rotation_trick=False, commitment_weight=0.25
        )
        .double()
        .eval()
    )
    ours = CosineQuantizer(32, 8, codebook_weight=0.0).double()
    theirs._codebook.embed.data.copy_(
        torch.nn.functional.normalize(draw(1, 32, 8, dtype=torch.float64), dim=-1)
    )
    ours.embedding.weight.data.copy_(3 * theirs._codebook.embed[0])
    latents = draw(2, 8, 6, 6, dtype=torch.float64).requires_grad_()
    output = ours(latents)
    quantized, indices, _ = theirs(latents.permute(0, 2, 3, 1).flatten(1, 2))
    assert torch.equal(output.indices.flatten(1), indices)
    torch.testing.assert_close(output.quantized.flatten(2).mT, quantized)


def test_unit_codes_start_on_the_sphere():
    for init in ("uniform", "data"):
        quantizer = CosineQuantizer(32, 4, init=init)
        quantizer.start(draw(2, 4, 8, 8), generator())
        torch.testing.assert_close(quantizer.embedding.weight.norm(dim=1), torch.ones(32))


def test_unit_codes_do_not_move():
    quantizer = CosineQuantizer(4, 2)
    assert quantizer.moved_weights(torch.zeros(2).double(), torch.ones(()).double()) is None


# SimVQ


@pytest.mark.parametrize("gradient", ["straight_through", "rotation"])
def test_simvq_equals_the_packages(gradient):
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


def test_the_starts_of_simvq():
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
