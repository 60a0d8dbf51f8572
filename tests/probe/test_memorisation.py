import pytest
import torch

from latentae.probe.memorisation import Nearest, memorisation, nearest


def test_nearest_by_hand():
    others = torch.tensor([[0.0, 0.0], [3.0, 4.0], [10.0, 0.0]])
    found = nearest(torch.tensor([[3.0, 0.0], [9.0, 0.0], [3.0, 4.0]]), others)
    assert found.distances.tolist() == [3.0, 1.0, 0.0]
    assert found.positions.tolist() == [0, 2, 1]
    assert nearest(torch.zeros(0, 2), others).distances.tolist() == []
    with pytest.raises(ValueError, match="no features"):
        nearest(others, torch.zeros(0, 2))


def test_large_features_lose_no_digits():
    others = torch.tensor([[1e4, 0.0], [1e4 + 0.01, 0.0]])
    assert nearest(others[1:], others).distances.item() == 0


def of(*distances):
    return Nearest(torch.tensor(distances, dtype=torch.float64), torch.zeros(len(distances)).long())


def test_share_of_samples_nearer_than_new_images_are():
    held_out = of(*[float(value) for value in range(1, 102)])  # its 5 % quantile is 6
    found = memorisation(of(1.0, 5.9, 6.1, 50.0), held_out, of(0.5, 0.7, 0.9))
    assert found.copied_share == 0.5
    assert (found.samples, found.held_out, found.copies) == (5.9, 51.0, 0.7)
