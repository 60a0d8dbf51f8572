import numpy as np
import pytest
import torch

from latentae.evaluation.distances import FeatureFile, feature_distances
from latentae.evaluation.frechet import GaussianStatistics, frechet_distance
from latentae.evaluation.kid import kernel_distance


@pytest.fixture
def files(tmp_path):
    def fill(name, features):
        file = FeatureFile(tmp_path / name, features.shape[1])
        for part in features.split(1000):
            file.append(part)
        return file

    return fill


def features(count, dimensions=3, seed=0):
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed))


def test_rows_come_back(files, tmp_path):
    rows = features(7)
    file = files("a", rows)
    file.append(rows[:2])
    assert np.array_equal(file.read(), torch.cat([rows, rows[:2]]).numpy())
    assert FeatureFile(tmp_path / "a", 3).read().shape == (0, 3)


def test_the_distances_of_the_features(files):
    first, second = features(300), 1.5 * features(300, seed=1)
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
    metrics, remark = feature_distances("vgg16", files("a", features(5000)), files("b", features(5000)))
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
def test_few_images(count, says, files):
    metrics, remark = feature_distances("vgg16", files("a", features(count)), files("b", features(count)))
    assert remark.startswith(says)
    assert list(metrics) == ([] if count == 1 else ["fd_vgg16"])


def test_images_that_have_no_features(files):
    rows = features(9)
    rows[4] = float("nan")
    metrics, remark = feature_distances("vgg16", files("a", rows), files("b", rows))
    assert (metrics, remark) == ({}, "FD-VGG16 left out: 1 of 9 images are too small for its network")
