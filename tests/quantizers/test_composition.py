import pytest
import torch
from vector_quantize_pytorch import ResidualLFQ, ResidualVQ

from latentae.quantizers import (
    CosineQuantizer,
    EMAQuantizer,
    FiniteScalarQuantizer,
    GroupedQuantizer,
    LookupFreeQuantizer,
    ResidualQuantizer,
    VectorQuantizer,
)
from latentae.quantizers.composition import all_indices, own_indices
from tests.quantizers.conftest import draw, generator


def test_a_composition_within_a_composition():
    inner = [ResidualQuantizer([EMAQuantizer(8, 2) for _ in range(3)]) for _ in range(2)]
    quantizer = GroupedQuantizer(inner)
    assert (quantizer.depth, quantizer.num_codes, quantizer.code_dim) == (6, 8, 4)
    latents = draw(2, 4, 8, 8)
    quantizer.start(latents, generator())
    output = quantizer.eval()(latents)
    assert output.indices.shape == (2, 6, 8, 8)
    assert torch.equal(quantizer.codes(output.indices), output.quantized)
    assert len(quantizer.upkeep) == 2 * (3 * 3 + 1)
    assert quantizer.latents_to_start == 32


def test_indices_of_members_and_of_all():
    alone = LookupFreeQuantizer(2)
    several = GroupedQuantizer([LookupFreeQuantizer(2), LookupFreeQuantizer(2)])
    parts = [torch.tensor([1, 2]), torch.tensor([[3, 0], [1, 1]])]
    together = all_indices(parts)
    assert together.tolist() == [[1, 3, 0], [2, 1, 1]]
    assert torch.equal(own_indices(alone, together, slice(0, 1)), parts[0])
    assert torch.equal(own_indices(several, together, slice(1, 3)), parts[1])


def test_members_of_different_sizes():
    with pytest.raises(ValueError, match=r"members have \[9, 16\] codes"):
        GroupedQuantizer([FiniteScalarQuantizer([3, 3]), FiniteScalarQuantizer([4, 4])])
    with pytest.raises(ValueError, match="be one or more"):
        GroupedQuantizer([])


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


def test_each_group_is_quantized_by_its_own():
    members = [VectorQuantizer(8, 2), VectorQuantizer(8, 3)]
    quantizer = GroupedQuantizer(members)
    assert (quantizer.depth, quantizer.code_dim) == (2, 5)
    latents = draw(2, 5, 4, 4)
    quantizer.start(latents, generator())
    output = quantizer(latents)
    first, second = members[0](latents[:, :2]), members[1](latents[:, 2:])
    assert torch.equal(output.quantized, torch.cat([first.quantized, second.quantized], dim=1))
    assert torch.equal(output.indices, torch.stack([first.indices, second.indices], dim=1))
    assert output.losses.keys() == {"codebook", "commitment"}
    torch.testing.assert_close(output.loss, (first.loss + second.loss) / 2)


def test_losses_of_equal_groups_are_means_over_all_values():
    quantizer = GroupedQuantizer([VectorQuantizer(4, 2), VectorQuantizer(4, 2)])
    latents = draw(2, 4, 4, 4)
    output = quantizer(latents)
    expected = 0.25 * (output.quantized - latents).square().mean()
    torch.testing.assert_close(output.losses["commitment"], expected)


def test_members_without_losses():
    members = [FiniteScalarQuantizer([3, 3], spread_weight=0.0) for _ in range(2)]
    output = GroupedQuantizer(members)(draw(1, 4, 2, 2))
    assert output.losses == {}


def test_codes_move_where_all_can():
    shift, scale = torch.tensor([1.0, 2.0], dtype=torch.float64), torch.tensor(3.0, dtype=torch.float64)
    quantizer = GroupedQuantizer([VectorQuantizer(4, 1), VectorQuantizer(4, 1)])
    moved = quantizer.moved_weights(shift, scale)
    assert moved is not None
    for (weight, value), own_shift in zip(moved, (1.0, 2.0), strict=True):
        torch.testing.assert_close(value, (weight.double() - own_shift) * 3)
    mixed = GroupedQuantizer([VectorQuantizer(4, 1), CosineQuantizer(4, 1)])
    assert mixed.moved_weights(shift, scale) is None
