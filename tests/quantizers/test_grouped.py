import torch

from latentae.quantizers import CosineQuantizer, FiniteScalarQuantizer, GroupedQuantizer, VectorQuantizer
from tests.quantizers.conftest import draw, generator


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
