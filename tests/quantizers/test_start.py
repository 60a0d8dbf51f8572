import pytest
import torch

from latentae.quantizers.start import k_means
from tests.quantizers.conftest import draw, generator


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
