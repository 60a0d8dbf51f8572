import math

import pytest
import torch
from vector_quantize_pytorch import FSQ

from latentae.quantizers import FiniteScalarQuantizer
from tests.quantizers.conftest import draw


@pytest.mark.parametrize("levels", [[8, 5, 5, 5], [7, 5, 5, 5, 5], [8, 6, 5], [3], [4, 4]])
def test_values_indices_and_gradients_equal_the_packages(levels):
    ours, theirs = FiniteScalarQuantizer(levels), FSQ(levels)
    latents = 3 * draw(2, len(levels), 9, 9, dtype=torch.float64)
    latents.requires_grad_()
    weights = draw(2, len(levels), 9, 9, seed=1, dtype=torch.float64)
    output = ours(latents)
    quantized, indices = theirs(latents)
    torch.testing.assert_close(output.quantized, quantized)
    assert torch.equal(output.indices, indices.long())
    gradients = [
        torch.autograd.grad((values * weights).sum(), latents)[0] for values in (output.quantized, quantized)
    ]
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(ours.codes(output.indices), theirs.indices_to_codes(indices).float())


def test_by_hand():
    quantizer = FiniteScalarQuantizer([3, 4])
    # Three levels are −1, 0, 1. Four are −2, −1, 0, 1 halves; 0 is kept, and nothing above 1 half is reached.
    latents = torch.tensor([[0.0, 0.0], [9.0, 9.0], [-9.0, -9.0], [0.6, -0.5]]).T.reshape(1, 2, 2, 2)
    output = quantizer(latents)
    codes = output.quantized.flatten(2)[0].T
    assert codes.tolist() == [[0.0, 0.0], [1.0, 0.5], [-1.0, -1.0], [1.0, -0.5]]
    # (integer + 1) + 3 (integer + 2)
    assert output.indices.flatten().tolist() == [1 + 3 * 2, 2 + 3 * 3, 0, 2 + 3 * 1]
    assert set(output.losses) == {"spread"}
    published = FiniteScalarQuantizer([3, 4], spread_weight=0)(latents)
    assert published.losses == {}
    assert published.loss.item() == 0.0


def test_every_index_stands_for_a_code_of_its_own():
    quantizer = FiniteScalarQuantizer([8, 5, 3])
    assert (quantizer.num_codes, quantizer.code_dim) == (120, 3)
    codes = quantizer.codes(torch.arange(120).view(1, 10, 12)).flatten(2)[0].T
    assert codes.unique(dim=0).shape == (120, 3)
    assert codes.abs().max() <= 1


def test_two_levels():
    quantizer = FiniteScalarQuantizer([2])
    output = quantizer(torch.tensor([-9.0, 0.0, 9.0]).reshape(1, 1, 1, 3))
    assert output.indices.tolist() == [[[0, 1, 1]]]
    assert output.quantized.flatten().tolist() == [-1.0, 0.0, 0.0]


def test_nan_is_no_code():
    output = FiniteScalarQuantizer([5, 5]).train()(torch.full((1, 2, 1, 1), math.nan))
    assert output.quantized.isnan().all()
    assert output.indices.item() == 12  # that of zeros, for counts that a refused step throws away


@pytest.mark.parametrize("levels", [[], [1], [8, 1, 5], [8, -2]])
def test_impossible_levels(levels):
    with pytest.raises(ValueError, match=r"levels are \[.*\], but must be one integer of 2 or more for each"):
        FiniteScalarQuantizer(levels)


def test_too_many_codes():
    with pytest.raises(ValueError, match="at most 1048576 can be counted"):
        FiniteScalarQuantizer([16] * 6)


def spread(latents, levels, weight=0.1):
    """The penalty on latents [N, d]."""
    return (
        FiniteScalarQuantizer(levels, spread_weight=weight)(latents.T[None, ..., None])
        .losses["spread"]
        .item()
    )


def test_spread_by_hand():
    # With odd levels 0 is u = 0, and the difference to the identity is all there is: d / d.
    assert spread(torch.zeros(5, 2), [3, 5]) == pytest.approx(0.1)
    # Both ends alike: E[u²] = 1 and E[u] = 0, so (3 − 1)²; one end only: E[u] = 1, so 3 more.
    assert spread(torch.tensor([[50.0], [-50.0]]), [5]) == pytest.approx(0.1 * 4)
    assert spread(torch.tensor([[50.0], [50.0]]), [5]) == pytest.approx(0.1 * 7)
    # Two channels that say the same: all four products are 3, of which two should be 1 and two 0.
    assert spread(torch.tensor([[50.0, 50.0], [-50.0, -50.0]]), [5, 5]) == pytest.approx(
        0.1 * (4 + 4 + 9 + 9) / 2
    )


def test_evenly_spread_latents_cost_nothing():
    uniform = torch.rand(200_000, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert spread(uniform.atanh(), [7, 5], weight=1.0) == pytest.approx(0, abs=1e-3)
    shifts = torch.atanh(torch.tensor([0.5, 0.5]) / torch.tensor([3.5, 1.5]) / 1.001)  # s of even levels
    assert spread(uniform.atanh() - shifts, [8, 4], weight=1.0) == pytest.approx(0, abs=1e-3)


def test_a_negative_weight():
    with pytest.raises(ValueError, match="spread_weight is -1"):
        FiniteScalarQuantizer([5], spread_weight=-1.0)
