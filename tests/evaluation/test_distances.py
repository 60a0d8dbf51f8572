import re
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import rbf_kernel
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from latentae.evaluation.distances import (
    FeatureFile,
    GaussianStatistics,
    clip_mmd,
    feature_distances,
    frechet_distance,
    kernel_distance,
    precision_recall,
)


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


def test_pieces_merge(features):
    whole, left, right = (statistics(x) for x in (features, features[:100], features[100:]))
    left.merge(right)
    assert left.count == 300
    torch.testing.assert_close(left.mean, whole.mean, rtol=1e-13, atol=0)
    torch.testing.assert_close(left.scatter, whole.scatter, rtol=1e-10, atol=1e-9)


def test_frechet_distance_of_one_dimension_by_hand():
    # N(0, 1) against N(3, 4): 9 + 1 + 4 - 2 * 2 = 10, with exact sample moments.
    a = torch.tensor([[-1.0], [0.0], [1.0]])
    assert frechet_distance(statistics(a), statistics(2 * a + 3)) == pytest.approx(10.0, rel=1e-12)


def test_frechet_distance_is_torch_fidelitys(features):
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


def test_features_that_have_no_frechet_distance(features):
    with pytest.raises(ValueError, match=r"features are \[B, 8\]"):
        statistics(features).add(features[:, :3])
    with pytest.raises(ValueError, match="not finite"):
        statistics(features).add(torch.full((1, 8), float("nan")))
    with pytest.raises(ValueError, match="two features or more, and there are 1"):
        frechet_distance(statistics(features), statistics(features[:1]))
    with pytest.raises(ValueError, match="8 and 7 dimensions"):
        frechet_distance(statistics(features), statistics(features[:, :7]))


def test_kernel_distance_of_two_features_by_hand():
    # k(x, y) = (x y + 1)^3 in one dimension: within {0, 1}: k(0,1) = 1; within {2, 3}: k(2,3) = 343;
    # between: (1 + 1 + 27 + 64) / 4.
    distance = kernel_distance(
        np.array([[0.0], [1.0]], np.float32), np.array([[2.0], [3.0]], np.float32), subsets=3
    )
    assert distance.value == pytest.approx(1 + 343 - 2 * 93 / 4)
    assert distance.deviation == pytest.approx(0, abs=1e-9)
    assert distance.subset_size == 2


def test_kernel_distance_is_torch_fidelitys():
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


def test_kernel_distance_is_unbiased_where_nothing_differs(tmp_path):
    generator = np.random.default_rng(0)
    stored = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (400, 8))
    stored[:] = generator.normal(size=(400, 8))
    other = generator.normal(size=(400, 8)).astype(np.float32)
    same = kernel_distance(stored, other, subsets=20, subset_size=100)
    assert abs(same.value) < 3 * same.deviation
    assert same == kernel_distance(stored, other, subsets=20, subset_size=100)
    assert kernel_distance(stored, other + 1, subsets=20, subset_size=100).value > 10 * same.deviation


def test_features_that_have_no_kernel_distance():
    one = np.zeros((1, 4), np.float32)
    with pytest.raises(ValueError, match="two features or more"):
        kernel_distance(one, one)
    with pytest.raises(ValueError, match=r"\[N, d\] and \[M, d\]"):
        kernel_distance(one, np.zeros((3, 5), np.float32))


@pytest.fixture
def files(tmp_path):
    def fill(name, features):
        file = FeatureFile(tmp_path / name, features.shape[1])
        for part in features.split(1000):
            file.append(part)
        return file

    return fill


def draw(count, dimensions=3, seed=0):
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed))


def test_rows_come_back(files, tmp_path):
    rows = draw(7)
    file = files("a", rows)
    file.append(rows[:2])
    assert file.shape == (9, 3)
    assert np.array_equal(file[:], torch.cat([rows, rows[:2]]).numpy())
    assert np.array_equal(file[np.array([8, 2])], rows[[1, 2]].numpy())
    empty = FeatureFile(tmp_path / "a", 3)
    assert len(empty) == 0
    assert empty[:5].shape == (0, 3)


def test_the_rows_of_many_images_do_not_stay_in_memory(files):
    """64 MB of rows in a file whose map would count as memory."""
    file = files("a", torch.rand(8000, 2048))
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("only Linux says how much of a process's memory is of files")

    def mapped():
        return int(re.search(r"RssFile:\s+(\d+)", status.read_text())[1])  # kB

    file[:1]
    before = mapped()
    kept = [file[start : start + 1000].mean() for start in range(0, 8000, 1000)]
    assert kept == pytest.approx([0.5] * 8, abs=0.01)
    assert mapped() - before < 4096


def test_the_distances_of_the_features(files):
    first, second = draw(300), 1.5 * draw(300, seed=1)
    metrics, _ = feature_distances("inception", files("a", first), files("b", second))
    statistics = [GaussianStatistics(3), GaussianStatistics(3)]
    for own, rows in zip(statistics, (first, second), strict=True):
        own.add(rows)
    assert metrics["rfid"].value == pytest.approx(frechet_distance(*statistics), rel=1e-9)
    assert metrics["rfid"].low is None
    kernel = kernel_distance(first.numpy(), second.numpy())
    assert metrics["kid"].value == kernel.value
    assert metrics["kid"].high == kernel.value + kernel.deviation


def test_many_images_need_no_remark(files):
    metrics, remark = feature_distances("vgg16", files("a", draw(5000)), files("b", draw(5000)))
    assert metrics["fd_vgg16"].value < 1e-9
    assert remark is None


@pytest.mark.parametrize(
    ("count", "says"),
    [
        (1, "FD-VGG16 left out: it needs two images or more"),
        (3, "FD-VGG16 is of 3 images, no more than its network has features (3): the covariances are"),
        (40, "FD-VGG16 is of 40 images only, which biases it upwards"),
    ],
)
def test_distances_of_few_images(count, says, files):
    metrics, remark = feature_distances("vgg16", files("a", draw(count)), files("b", draw(count)))
    assert remark.startswith(says)
    assert list(metrics) == ([] if count == 1 else ["fd_vgg16"])


def test_images_that_have_no_features(files):
    rows = draw(9)
    rows[4] = float("nan")
    metrics, remark = feature_distances("vgg16", files("a", rows), files("b", rows))
    assert (metrics, remark) == ({}, "FD-VGG16 left out: 1 of 9 images are too small for its network")


def test_clip_mmd_is_cmmds_formula():
    """Beside scikit-learn's kernel; several blocks of rows on one side."""
    generator = np.random.default_rng(0)
    x, y = (generator.normal(shift, 1, (count, 6)) for shift, count in ((0, 1500), (0.3, 40)))
    x, y = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, y))
    x, y = x.astype(np.float32), y.astype(np.float32)
    kernels = [
        rbf_kernel(a.astype(float), b.astype(float), gamma=1 / 200).mean()
        for a, b in ((x, x), (y, y), (x, y))
    ]
    expected = 1000 * (kernels[0] + kernels[1] - 2 * kernels[2])
    assert expected > 0.1
    assert clip_mmd(x, y) == pytest.approx(expected, rel=1e-9)
    assert clip_mmd(x, x) == pytest.approx(0, abs=1e-9)
    # Two points a and −a: 1000 (2 − 2 exp(−4 / 200)) by hand.
    assert clip_mmd(x[:1], -x[:1]) == pytest.approx(2000 * -np.expm1(-0.02), rel=1e-6)
    with pytest.raises(
        ValueError, match=r"features are \[N, d\] and \[M, d\]; got \[1500, 6\] and \[40, 5\]"
    ):
        clip_mmd(x, y[:, :5])


def test_precision_and_recall_are_torch_fidelitys():
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(600, 5, generator=generator)
    made = torch.randn(600, 5, generator=generator) * 0.6 + 0.5
    theirs = prc_features_to_metric(
        made, real, prc_neighborhood=3, prc_batch_size=10000, save_cpu_ram=False, verbose=False
    )
    ours = precision_recall(real.numpy(), made.numpy())
    assert 0.2 < ours.recall < ours.precision < 1
    assert (ours.precision, ours.recall) == pytest.approx((theirs["precision"], theirs["recall"]), abs=1e-6)
    assert ours.count == 600


def test_precision_and_recall_by_hand():
    # The balls of 0, 1, 2 and 3 have the radii 3, 2, 2 and 3, those of the others 4.5, 5.5, 6.5 and 6.5.
    real = np.array([[0.0], [1], [2], [3]], np.float32)
    made = np.array([[10.0], [11], [12], [5.5]], np.float32)
    found = precision_recall(real, made)
    assert found.precision == 0.25  # 5.5 is within 3 of 3
    assert found.recall == 1.0  # the ball of 5.5 reaches down to −1
    assert precision_recall(real, real) == (type(found))(1.0, 1.0, 4)
    with pytest.raises(ValueError, match="need 4 images"):
        precision_recall(real[:3], made[:3])
    with pytest.raises(ValueError, match=r"the same images; got \[4, 1\] and \[3, 1\]"):
        precision_recall(real, made[:3])


def test_of_many_images_some_are_compared(monkeypatch):
    monkeypatch.setattr("latentae.evaluation.distances._MOST_NEIGHBOURS", 50)
    real, made = np.random.default_rng(0).normal(size=(2, 100, 3)).astype(np.float32)
    assert precision_recall(real, made) == precision_recall(real[::2], made[::2])
    assert precision_recall(real, made).count == 50


def test_clip_has_one_distance(tmp_path):
    rows = torch.nn.functional.normalize(torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    stored = []
    for name, features in (("a", rows), ("b", rows.flip(1))):
        stored.append(FeatureFile(tmp_path / name, 4))
        stored[-1].append(features)
    metrics, remark = feature_distances("clip", *stored)
    assert {name: value.value for name, value in metrics.items()} == {
        "clip_mmd": pytest.approx(clip_mmd(rows.numpy(), rows.flip(1).numpy()))
    }
    assert remark is None
