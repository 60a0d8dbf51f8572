import numpy as np
import pytest
import torch
from torch_fidelity.metric_kid import kid_features_to_metric

from latentae.evaluation.kid import kernel_distance


def test_two_features_by_hand():
    # k(x, y) = (x y + 1)^3 in one dimension: within {0, 1}: k(0,1) = 1; within {2, 3}: k(2,3) = 343;
    # between: (1 + 1 + 27 + 64) / 4.
    distance = kernel_distance(
        np.array([[0.0], [1.0]], np.float32), np.array([[2.0], [3.0]], np.float32), subsets=3
    )
    assert distance.value == pytest.approx(1 + 343 - 2 * 93 / 4)
    assert distance.deviation == pytest.approx(0, abs=1e-9)
    assert distance.subset_size == 2


def test_equal_to_torch_fidelity():
    generator = np.random.default_rng(0)
    x, y = (
        generator.normal(size=(50, 16)).astype(np.float32),
        generator.normal(0.3, 1.2, (50, 16)).astype(np.float32),
    )
    theirs = kid_features_to_metric(
        torch.from_numpy(x).double(),
        torch.from_numpy(y).double(),
        kid_subsets=2,
        kid_subset_size=50,
        verbose=False,
    )["kernel_inception_distance_mean"]
    assert kernel_distance(x, y, subsets=2, subset_size=50).value == pytest.approx(theirs, rel=1e-10)


def test_is_unbiased_where_nothing_differs(tmp_path):
    generator = np.random.default_rng(0)
    stored = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (400, 8))
    stored[:] = generator.normal(size=(400, 8))
    other = generator.normal(size=(400, 8)).astype(np.float32)
    same = kernel_distance(stored, other, subsets=20, subset_size=100)
    assert abs(same.value) < 3 * same.deviation
    assert same == kernel_distance(stored, other, subsets=20, subset_size=100)
    assert kernel_distance(stored, other + 1, subsets=20, subset_size=100).value > 10 * same.deviation


def test_bad_input():
    one = np.zeros((1, 4), np.float32)
    with pytest.raises(ValueError, match="two features or more"):
        kernel_distance(one, one)
    with pytest.raises(ValueError, match=r"\[N, d\] and \[M, d\]"):
        kernel_distance(one, np.zeros((3, 5), np.float32))
