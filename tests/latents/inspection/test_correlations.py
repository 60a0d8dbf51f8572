import torch

from latentae.latents.inspection.correlations import channel_correlations
from tests.latents.inspection.conftest import ink


def test_correlations_of_latents_made_by_hand():
    a, b = torch.randn(2, 50, 1, 16, 16, generator=torch.manual_seed(0), dtype=torch.float64)
    found = channel_correlations(torch.cat([a, 5 - 2 * a, 0.6 * a + 0.8 * b], dim=1).split(7))
    expected = torch.tensor([[1, -1, 0.6], [-1, 1, -0.6], [0.6, -0.6, 1]], dtype=torch.float64)
    torch.testing.assert_close(found.matrix, expected, rtol=0, atol=0.01)
    assert abs(found.largest - 1) < 1e-12
    assert found.positions == 50 * 256


def test_one_channel_is_correlated_with_nothing_else():
    found = channel_correlations(torch.randn(2, 1, 3, 3))
    assert found.matrix.tolist() == [[1]]
    assert found.largest == 0
    assert ink(found.figure().picture) > 1000


def test_numbers_are_finite_with_a_constant_channel():
    latents = torch.randn(2, 2, 3, 3)
    latents[:, 0] = 0
    numbers = channel_correlations(latents).numbers()
    assert numbers["matrix"] == [[1, 0], [0, 1]]
    assert numbers["constant"] == [0]
