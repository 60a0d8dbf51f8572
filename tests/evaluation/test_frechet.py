import numpy as np
import pytest
import torch
from torch_fidelity.metric_fid import fid_statistics_to_metric

from latentae.evaluation.frechet import GaussianStatistics, frechet_distance


def statistics(features, pieces=1):
    result = GaussianStatistics(features.shape[1])
    for piece in features.chunk(pieces):
        result.add(piece)
    return result


@pytest.fixture
def features():
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(8, 8, generator=generator, dtype=torch.float64)
    return (torch.randn(300, 8, generator=generator, dtype=torch.float64) @ mix + 100).float()


def test_mean_and_covariance_are_numpys(features):
    ours = statistics(features, pieces=7)
    array = features.double().numpy()
    np.testing.assert_allclose(ours.mean, array.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(ours.covariance, np.cov(array, rowvar=False), rtol=1e-10, atol=1e-10)


def test_pieces_merge_and_survive_storage(features):
    whole, left, right = (statistics(x) for x in (features, features[:100], features[100:]))
    left.merge(GaussianStatistics.from_state(right.state()))
    assert left.count == 300
    torch.testing.assert_close(left.mean, whole.mean, rtol=1e-13, atol=0)
    torch.testing.assert_close(left.scatter, whole.scatter, rtol=1e-10, atol=1e-9)


def test_of_one_dimension_by_hand():
    # N(0, 1) against N(3, 4): 9 + 1 + 4 - 2 * 2 = 10, with exact sample moments.
    a = torch.tensor([[-1.0], [0.0], [1.0]])
    assert frechet_distance(statistics(a), statistics(2 * a + 3)) == pytest.approx(10.0, rel=1e-12)


def test_equal_to_torch_fidelity(features):
    other = features.flip(1) * 1.3 - 20
    first, second = statistics(features), statistics(other)
    theirs = fid_statistics_to_metric(
        {"mu": first.mean.numpy(), "sigma": first.covariance.numpy()},
        {"mu": second.mean.numpy(), "sigma": second.covariance.numpy()},
        verbose=False,
    )["frechet_inception_distance"]
    assert frechet_distance(first, second) == pytest.approx(theirs, rel=1e-8)


def test_more_dimensions_than_features():
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, 5, 40, generator=generator)
    assert frechet_distance(statistics(a), statistics(a)) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(statistics(a), statistics(b)) > 1


def test_bad_input(features):
    with pytest.raises(ValueError, match=r"features are \[B, 8\]"):
        statistics(features).add(features[:, :3])
    with pytest.raises(ValueError, match="not finite"):
        statistics(features).add(torch.full((1, 8), float("nan")))
    with pytest.raises(ValueError, match="two features or more, and there are 1"):
        frechet_distance(statistics(features), statistics(features[:1]))
    with pytest.raises(ValueError, match="8 and 7 dimensions"):
        frechet_distance(statistics(features), statistics(features[:, :7]))
