import pytest
import torch
from vector_quantize_pytorch import ResidualLFQ, ResidualVQ

from latentae.quantizers import (
    EMAQuantizer,
    FiniteScalarQuantizer,
    LookupFreeQuantizer,
    ResidualQuantizer,
    VectorQuantizer,
)
from tests.quantizers.conftest import draw, generator


def by_hand(**arguments):
    """Codes 0 and 10 first, then 0 and 1."""
    members = [VectorQuantizer(2, 1) for _ in range(2)]
    members[0].embedding.weight.data = torch.tensor([[0.0], [10.0]])
    members[1].embedding.weight.data = torch.tensor([[0.0], [1.0]])
    return ResidualQuantizer(members, **arguments)


def test_codes_losses_and_gradients_by_hand():
    quantizer = by_hand()
    latents = torch.tensor([10.75, 0.25]).reshape(1, 1, 1, 2).requires_grad_()
    output = quantizer(latents)
    assert output.indices.tolist() == [[[[1, 0]], [[1, 0]]]]
    assert output.quantized.flatten().tolist() == [11.0, 0.0]
    # What is left: 0.75 and 0.25 after the first, −0.25 and 0.25 after the second; mean of their means.
    squares = ((0.75**2 + 0.25**2) / 2 + (0.25**2 + 0.25**2) / 2) / 2
    assert output.losses["codebook"].item() == pytest.approx(squares)
    assert output.losses["commitment"].item() == pytest.approx(0.25 * squares)
    (gradient,) = torch.autograd.grad(output.quantized.sum(), latents, retain_graph=True)
    assert gradient.flatten().tolist() == [1.0, 1.0]  # passed once, not once for each quantizer
    # d/dz of 0.25/2 · (mean of (z − 10)² and z² + mean of what is left after both)
    (gradient,) = torch.autograd.grad(output.losses["commitment"], latents)
    assert gradient.flatten().tolist() == pytest.approx([0.125 * (0.75 - 0.25), 0.125 * (0.25 + 0.25)])


def test_values_equal_the_packages():
    theirs = ResidualVQ(dim=4, codebook_size=16, num_quantizers=3, kmeans_init=False).double().eval()
    ours = ResidualQuantizer([EMAQuantizer(16, 4) for _ in range(3)]).double().eval()
    for number, (member, layer) in enumerate(zip(ours.members, theirs.layers, strict=True)):
        layer._codebook.embed.data.copy_(draw(1, 16, 4, seed=number, dtype=torch.float64))
        member.embedding.weight.data.copy_(layer._codebook.embed[0])
    latents = draw(2, 4, 6, 6, seed=9, dtype=torch.float64)
    output = ours(latents)
    quantized, indices, _ = theirs(latents.permute(0, 2, 3, 1).flatten(1, 2))
    torch.testing.assert_close(output.quantized.flatten(2).mT.float(), quantized.float())  # theirs is float32
    assert torch.equal(output.indices.flatten(2).mT, indices)


def test_a_scale_for_codes_of_a_fixed_range_is_that_of_the_package():
    theirs = ResidualLFQ(dim=4, codebook_size=16, num_quantizers=3).eval()
    ours = ResidualQuantizer([LookupFreeQuantizer(4) for _ in range(3)], scale=0.5).eval()
    latents = draw(2, 4, 6, 6)
    quantized, _, _ = theirs(latents.permute(0, 2, 3, 1).flatten(1, 2))
    torch.testing.assert_close(ours(latents).quantized.flatten(2).mT, quantized)


def test_each_table_makes_the_rest_smaller():
    quantizer = ResidualQuantizer([EMAQuantizer(16, 4) for _ in range(4)]).eval()
    latents = draw(4, 4, 8, 8)
    quantizer.start(latents, generator())
    indices = quantizer(latents).indices
    errors = [(quantizer.codes(indices[:, :n]) - latents).square().mean().item() for n in (1, 2, 3, 4)]
    assert errors == sorted(errors, reverse=True)
    assert errors[3] < errors[0] / 4
    with pytest.raises(ValueError, match=r"indices are \[B, 4, h, w\]; got \[4, 0, 8, 8\]"):
        quantizer.codes(indices[:, :0])


def test_dropout_leaves_out_the_last_ones():
    quantizer = by_hand(dropout=1.0).train()
    latents = torch.tensor([10.75, 0.25]).reshape(1, 1, 1, 2)
    quantizer.active.fill_(1)
    output = quantizer(latents)
    assert output.quantized.flatten().tolist() == [10.0, 0.0]
    assert output.indices.tolist() == [[[[1, 0]], [[1, 0]]]]
    assert output.losses["codebook"].item() == pytest.approx((0.75**2 + 0.25**2) / 2)
    assert quantizer.members[0].pending_counts.tolist() == [1.0, 1.0]
    assert quantizer.members[1].pending_counts.tolist() == [0.0, 0.0]
    output.loss.backward()  # reaches all parameters, as DDP wants
    assert quantizer.members[1].embedding.weight.grad.tolist() == [[0.0], [0.0]]
    assert quantizer.eval()(latents).quantized.flatten().tolist() == [11.0, 0.0]


def test_how_many_take_part_is_drawn_from_the_generator():
    def draws(dropout, seeds):
        quantizer = ResidualQuantizer([LookupFreeQuantizer(2) for _ in range(4)], dropout=dropout)
        found = []
        for seed in seeds:
            quantizer.commit(1, generator(seed))
            found.append(int(quantizer.active))
        return found

    assert draws(1.0, range(200)) == draws(1.0, range(200))
    assert set(draws(1.0, range(200))) == {1, 2, 3, 4}
    assert set(draws(0.0, range(20))) == {4}
    share = sum(number == 4 for number in draws(0.5, range(400))) / 400
    assert share == pytest.approx(0.5 + 0.5 / 4, abs=0.08)


def test_dropout_is_part_of_the_upkeep_and_of_the_start():
    quantizer = by_hand(dropout=1.0)
    seen = set()
    for seed in range(20):
        quantizer.start(draw(1, 1, 4, 4), generator(seed))
        seen.add(int(quantizer.upkeep["active"]))
    assert seen == {1, 2}


@pytest.mark.parametrize(
    ("members", "arguments", "message"),
    [
        ([], {}, "be one or more"),
        ([VectorQuantizer(4, 2), VectorQuantizer(4, 3)], {}, r"codes of length \[2, 3\]"),
        ([VectorQuantizer(4, 2), VectorQuantizer(5, 2)], {}, r"have \[4, 5\] codes"),
        ([ResidualQuantizer([FiniteScalarQuantizer([3])])], {}, "is a composition"),
        ([VectorQuantizer(4, 2)], {"dropout": 1.5}, r"dropout is 1\.5"),
        ([VectorQuantizer(4, 2)], {"scale": 0.0}, r"scale is 0\.0"),
        ([VectorQuantizer(4, 2)], {"gradient": "none"}, "gradient is 'none'"),
    ],
)
def test_impossible_arguments(members, arguments, message):
    with pytest.raises(ValueError, match=message):
        ResidualQuantizer(members, **arguments)
