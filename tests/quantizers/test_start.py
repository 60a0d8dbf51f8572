import pytest
import torch

from latentae.quantizers import FiniteScalarQuantizer
from latentae.quantizers.start import LatentMap, k_means, whitening
from tests.quantizers.conftest import draw, generator, make


def test_every_cluster_gets_a_centre():
    # A plain draw of 64 points misses a third of 64 clusters, and k-means never finds them again.
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    places = 20 * torch.stack([rows, columns], dim=-1).view(-1, 2)
    points = places.repeat_interleave(50, 0) + 0.1 * draw(3200, 2)
    for seed in range(5):
        centres = k_means(points, 64, generator(seed))
        assert torch.cdist(places, centres).min(dim=1).values.max() < 1


def test_two_centres_by_hand():
    points = torch.tensor([[0.0], [1.0], [10.0], [12.0]])
    assert k_means(points, 2, generator()).sort(dim=0).values.flatten().tolist() == [0.5, 11.0]


def test_the_same_generator_gives_the_same_centres():
    points = draw(300, 4)
    assert torch.equal(k_means(points, 40, generator(3)), k_means(points, 40, generator(3)))
    assert not torch.equal(k_means(points, 40, generator(3)), k_means(points, 40, generator(4)))


def test_no_point_is_drawn_twice():
    # With as many centres as points, each is a point of its own.
    points = draw(50, 3)
    centres = k_means(points, 50, generator())
    assert torch.equal(centres.sort(dim=0).values, points.sort(dim=0).values)


@pytest.mark.parametrize("spherical", [False, True])
def test_fewer_points_than_centres(spherical):
    points = torch.nn.functional.normalize(draw(9, 4), dim=1)
    centres = k_means(points, 64, generator(), spherical=spherical)
    assert centres.isfinite().all()
    assert torch.cdist(centres, points).min(dim=1).values.max() < 0.02
    assert centres.unique(dim=0).shape[0] == 64


@pytest.mark.parametrize("count", [1, 8])
def test_a_single_point(count):
    centres = k_means(torch.tensor([[3.0, -4.0]]), count, generator())
    assert centres.shape == (count, 2)
    torch.testing.assert_close(centres, torch.tensor([[3.0, -4.0]]).expand(count, 2), rtol=0.02, atol=0)


def test_points_that_are_all_nothing():
    assert torch.equal(k_means(torch.zeros(5, 3), 8, generator()), torch.zeros(8, 3))


def test_on_the_sphere_centres_stay_on_it():
    points = torch.nn.functional.normalize(draw(500, 3), dim=1)
    centres = k_means(points, 20, generator(), spherical=True)
    torch.testing.assert_close(centres.norm(dim=1), torch.ones(20))


def test_mean_and_covariance():
    mixing = torch.tensor([[2.0, 0.0, 0.0], [1.9, 0.1, 0.0], [0.0, 0.3, 0.01]])
    latents = (draw(5000, 3) @ mixing + torch.tensor([5.0, -1.0, 0.0])).double()
    white = whitening(latents)(latents)
    torch.testing.assert_close(white.mean(dim=0), torch.zeros(3, dtype=torch.float64), atol=1e-9, rtol=0)
    covariance = white.T @ white / len(white)
    torch.testing.assert_close(covariance, torch.eye(3, dtype=torch.float64), atol=1e-8, rtol=0)


def test_by_hand():
    """Variances 4 and 1 along the axes, around (1, 2)."""
    latents = torch.tensor([[3.0, 2.0], [-1.0, 2.0], [1.0, 3.0], [1.0, 1.0]])
    change = whitening(latents)
    assert torch.allclose(change.matrix, torch.diag(torch.tensor([2.0, 0.5]).double().rsqrt()))
    assert torch.allclose(change.shift, -change.matrix @ torch.tensor([1.0, 2.0]).double())


def test_channels_without_variance_stay_finite():
    constant = whitening(torch.full((4, 2), 3.0))
    assert constant.matrix.tolist() == torch.eye(2).tolist()
    assert constant(torch.full((1, 2), 3.0)).tolist() == [[0.0, 0.0]]
    assert whitening(torch.tensor([[1.0, 2.0]])).matrix.tolist() == torch.eye(2).tolist()


def test_in_the_dtype_of_the_latents():
    change = LatentMap(torch.eye(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64))
    assert change(torch.zeros(1, 2)).dtype == torch.float32


def narrow():
    """Latents as an encoder is drawn: a tenth of the grid wide, channels that say nearly the same."""
    mixing = 0.1 * torch.ones(4, 4) + 0.02 * torch.eye(4)
    return torch.einsum("bchw,cd->bdhw", draw(16, 4, 32, 32), mixing) + 0.3


def test_a_start_reaches_all_of_the_grid():
    quantizer = FiniteScalarQuantizer([8, 8, 4, 4])
    change = quantizer.start(narrow(), generator())
    moved = (
        torch.einsum("bchw,dc->bdhw", narrow(), change.matrix.float()) + change.shift.float()[:, None, None]
    )
    before, after = quantizer(narrow()).health, quantizer(moved).health
    assert before.usage < 0.1
    assert after.usage > 0.99
    assert before.perplexity < 60
    assert after.perplexity > 800  # a normal distribution does not fill it evenly
    assert FiniteScalarQuantizer([8, 8, 4, 4], init="none").start(narrow(), generator()) is None


def test_members_ask_for_it_too():
    levels = {"num_codes": None, "code_dim": None, "member": {"type": "fsq", "levels": [4, 4]}, "groups": 2}
    assert make("grouped", **levels).start(narrow(), generator()) is not None
    levels = {"type": "fsq", "levels": [4, 4, 4, 4], "init": "none"}
    residual = make("residual", num_codes=None, code_dim=None, member=levels)
    assert residual.start(narrow(), generator()) is None


def test_an_unknown_start():
    with pytest.raises(ValueError, match="init is 'uniform', but must be one of none, data"):
        FiniteScalarQuantizer([5, 5], init="uniform")
