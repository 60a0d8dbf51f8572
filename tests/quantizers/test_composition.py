import pytest
import torch

from latentae.quantizers import (
    EMAQuantizer,
    FiniteScalarQuantizer,
    GroupedQuantizer,
    LookupFreeQuantizer,
    ResidualQuantizer,
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
