import re
from pathlib import Path

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
