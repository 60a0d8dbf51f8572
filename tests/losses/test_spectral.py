import pytest
import torch

from latentae.losses.resizing import resize
from latentae.losses.spectral import Spectral, low_pass


def test_factors_are_drawn_evenly():
    generator = torch.Generator().manual_seed(0)
    spectral = Spectral(factors=(2, 4, 8))
    drawn = [spectral.draw(generator) for _ in range(3000)]
    assert set(drawn) == {2, 4, 8}
    assert all(abs(drawn.count(factor) - 1000) < 110 for factor in (2, 4, 8))


@pytest.mark.parametrize("factors", [(), (1, 2)])
def test_factors_that_make_nothing_smaller(factors):
    with pytest.raises(ValueError, match=r"factors are \[.*\]: give whole numbers of 2 or more"):
        Spectral(factors=factors)


@pytest.mark.parametrize(
    ("factor", "latents", "pixels"), [(2, (4, 6), (16, 24)), (4, (2, 3), (8, 12)), (16, (1, 1), (4, 4))]
)
def test_sizes(factor, latents, pixels):
    assert low_pass(torch.rand(1, 2, 8, 12), factor).shape[-2:] == latents
    assert low_pass(torch.rand(1, 3, 32, 48), factor, unit=4).shape[-2:] == pixels


def test_high_frequencies_go_and_low_ones_stay():
    x = torch.arange(64, dtype=torch.float64)
    fast, slow = (torch.cos(torch.pi * cycles * (x + 0.5) / 64).expand(1, 1, 64, 64) for cycles in (60, 2))
    assert low_pass(fast, 2)[..., 2:-2].abs().max() < 0.01
    expected = torch.cos(torch.pi * 2 * (torch.arange(32) + 0.5) / 32).expand(1, 1, 32, 32).double()
    torch.testing.assert_close(low_pass(slow, 2)[..., 1:-1], expected[..., 1:-1], atol=0.01, rtol=0)
    assert torch.equal(low_pass(slow, 2), resize(slow, (32, 32)))
