import pytest
import torch

from latentae.evaluation.assembly import assemble, percentiles
from latentae.evaluation.frechet import GaussianStatistics, frechet_distance


def shard(values, first=0, **more):
    row = torch.tensor(values, dtype=torch.float64)
    indices = torch.arange(first, first + len(values))
    return {"value.psnr": row, "indices": indices, "seconds": torch.tensor(2.0), **more}


def test_means_over_images_not_over_blocks():
    result = assemble([shard([10.0, 20.0]), shard([60.0], first=2)], {}, {})
    assert result.metrics["psnr"].value == pytest.approx(30)
    assert result.indices.tolist() == [0, 1, 2]
    assert result.metrics["images_per_second"].value == 3 / 4


def test_an_infinite_ratio_has_no_interval():
    value = assemble([shard([10.0, float("inf")])], {}, {}).metrics["psnr"]
    assert (value.value, value.low) == (float("inf"), None)


def test_drift_is_of_some_images():
    extra = {"value.cycle_psnr_2": torch.tensor([8.0, float("nan")], dtype=torch.float64)}
    result = assemble([shard([10.0, 20.0], **extra)], {}, {})
    assert result.metrics["cycle_psnr_2"].value == 8.0


def test_distances_are_of_all_features():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = torch.randn(2, 9, 3, generator=generator)
    parts = [
        shard([1.0] * 5, **{"features.vgg16": ours[:5]}),
        shard([1.0] * 4, **{"features.vgg16": ours[5:]}),
    ]
    result = assemble(parts, {"vgg16": [theirs[:5], theirs[5:]]}, {"vgg16": 3})
    statistics = [GaussianStatistics(3), GaussianStatistics(3)]
    for own, features in zip(statistics, (ours, theirs), strict=True):
        own.add(features)
    assert result.metrics["fd_vgg16"].value == pytest.approx(frechet_distance(*statistics), rel=1e-9)
    assert "kid" not in result.metrics


def test_percentiles_by_hand():
    found = percentiles(torch.arange(101, dtype=torch.float64))
    assert found == {"1": 1.0, "5": 5.0, "25": 25.0, "50": 50.0, "75": 75.0, "95": 95.0, "99": 99.0}


def test_nothing_to_join():
    with pytest.raises(ValueError, match="no images to measure"):
        assemble([shard([])], {}, {})
