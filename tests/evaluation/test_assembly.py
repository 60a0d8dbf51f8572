import pytest
import torch

from latentae.evaluation.assembly import (
    Shards,
    assemble,
    bootstrap_interval,
    content_sha256,
    from_text,
    percentiles,
    reference_cache,
    to_text,
)
from latentae.evaluation.blocks import Block
from latentae.evaluation.distances import GaussianStatistics, frechet_distance
from latentae.evaluation.rate import CodeMeter


def test_comes_back_or_counts_as_missing(tmp_path):
    shards = Shards(tmp_path, "kl", "fingerprint")
    assert not shards.has(3)
    shards.store(3, {"value.psnr": torch.tensor([1.0, 2.0])})
    assert shards.load(3)["value.psnr"].tolist() == [1.0, 2.0]
    shards.path(3).write_bytes(shards.path(3).read_bytes()[:-1])
    assert not shards.has(3)
    assert [path.name for path in shards.folder.iterdir()] == ["000003.safetensors"]


def test_another_fingerprint_is_another_folder(tmp_path):
    assert Shards(tmp_path, "kl", "a").folder != Shards(tmp_path, "kl", "b").folder


def test_the_content_is_pixels_and_sizes():
    images = [torch.zeros(1, 2, 4, dtype=torch.uint8), torch.ones(1, 2, 2, dtype=torch.uint8)]
    same = content_sha256(Block(0, images=images))
    assert same == content_sha256(Block(7, names=["else"], images=[image.clone() for image in images]))
    assert same != content_sha256(Block(0, images=[torch.zeros(1, 4, 2, dtype=torch.uint8), images[1]]))
    images[1][0, 0, 0] += 1
    assert same != content_sha256(Block(0, images=images))


def test_text_is_numbers(tmp_path):
    shards = Shards(tmp_path, "originals", "fingerprint")
    shards.store(0, {"text": from_text("größe.png: zu klein"), "none": from_text("")})
    loaded = shards.load(0)
    assert (to_text(loaded["text"]), to_text(loaded["none"])) == ("größe.png: zu klein", "")
    assert to_text(from_text("caf\udce9.png")) == "caf\udce9.png"
    assert Shards(tmp_path, "kl", "caf\udce9").folder != shards.folder


def test_where_features_of_originals_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("LATENTAE_CACHE", str(tmp_path / "own"))
    assert reference_cache() == tmp_path / "own/reference_features"
    monkeypatch.delenv("LATENTAE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert reference_cache() == tmp_path / "xdg/latentae/reference_features"


def test_the_interval_is_that_of_the_normal_approximation():
    values = torch.randn(2000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    low, high = bootstrap_interval(values)
    mean, half = values.mean().item(), 1.96 * values.std().item() / 2000**0.5
    assert low == pytest.approx(mean - half, abs=0.1 * half)
    assert high == pytest.approx(mean + half, abs=0.1 * half)
    assert (low, high) == bootstrap_interval(values)
    assert bootstrap_interval(torch.full((3,), 2.0)) == (2.0, 2.0)


def pair(values, first=0, unreadable="", originals=None, **more):
    """Shards of the originals and of a model."""
    known = {
        "indices": torch.arange(first, first + len(values)),
        "content": from_text(f"{first}"),
        "unreadable": from_text(unreadable),
        **(originals or {}),
    }
    row = torch.tensor(values, dtype=torch.float64)
    return known, {"value.psnr": row, "seconds": torch.tensor(2.0), **more}


def test_means_over_images_not_over_blocks(tmp_path):
    result = assemble([pair([10.0, 20.0]), pair([60.0], first=2)], {}, tmp_path)
    assert result.metrics["psnr"].value == pytest.approx(30)
    assert result.indices.tolist() == [0, 1, 2]
    assert result.metrics["images_per_second"].value == 3 / 4
    assert list(tmp_path.iterdir()) == []


def test_the_hash_is_of_all_blocks(tmp_path):
    hashes = {
        assemble([pair([1.0], first=a), pair([2.0], first=b)], {}, tmp_path).pixels_sha256
        for a, b in ((0, 1), (0, 2), (2, 1), (0, 1))
    }
    assert len(hashes) == 3


def test_what_could_not_be_read(tmp_path):
    pairs = [pair([10.0], unreadable="a.png: empty\nb.png: no picture"), pair([], unreadable="c.png: empty")]
    result = assemble(pairs, {}, tmp_path)
    assert result.unreadable == ["a.png: empty", "b.png: no picture", "c.png: empty"]
    with pytest.raises(ValueError, match=r"no images to measure: none of 1 could be read, such as c\.png"):
        assemble(pairs[1:], {}, tmp_path)
    with pytest.raises(ValueError, match="the data are empty"):
        assemble([], {}, tmp_path)


def test_an_infinite_ratio_has_no_interval(tmp_path):
    value = assemble([pair([10.0, float("inf")])], {}, tmp_path).metrics["psnr"]
    assert (value.value, value.low) == (float("inf"), None)


def test_one_image_has_no_interval(tmp_path):
    value = assemble([pair([10.0])], {}, tmp_path).metrics["psnr"]
    assert (value.value, value.low, value.high) == (10.0, None, None)


def test_drift_is_of_some_images(tmp_path):
    extra = {"value.cycle_psnr_2": torch.tensor([8.0, float("nan")], dtype=torch.float64)}
    result = assemble([pair([10.0, 20.0], **extra)], {}, tmp_path)
    assert result.metrics["cycle_psnr_2"].value == 8.0
    nothing = {"value.cycle_psnr_2": torch.tensor([float("nan")])}
    assert "cycle_psnr_2" not in assemble([pair([10.0], **nothing)], {}, tmp_path).metrics


def test_a_metric_of_some_images_is_left_out(tmp_path):
    extra = {"value.ms_ssim": torch.tensor([0.5, float("nan")], dtype=torch.float64)}
    result = assemble([pair([10.0, 20.0], **extra)], {}, tmp_path)
    assert "ms_ssim" not in result.metrics
    assert result.remarks == ["MS-SSIM left out: 1 of 2 images are too small for it"]


def test_distances_are_of_all_features(tmp_path):
    ours, theirs = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(0))
    parts = [
        pair([1.0] * len(a), originals={"features.vgg16": b}, **{"features.vgg16": a})
        for a, b in ((ours[:5], theirs[:5]), (ours[5:], theirs[5:]))
    ]
    result = assemble(parts, {"vgg16": 3}, tmp_path)
    statistics = [GaussianStatistics(3), GaussianStatistics(3)]
    for own, features in zip(statistics, (ours, theirs), strict=True):
        own.add(features)
    assert result.metrics["fd_vgg16"].value == pytest.approx(frechet_distance(*statistics), rel=1e-9)
    assert "kid" not in result.metrics


def test_codes_of_all_blocks(tmp_path):
    states = []
    for codes in ([[[0, 0], [0, 1]]], [[[2, 2], [2, 3]]]):
        meter = CodeMeter(8)
        meter.add(torch.tensor(codes), 4, 4)
        states.append({f"codes.{key}": value for key, value in meter.state().items()})
    metrics = assemble([pair([1.0], **state) for state in states], {}, tmp_path).metrics
    assert metrics["codebook_usage"].value == 0.5
    assert metrics["bits_per_pixel"].value == pytest.approx(4 * 3 / 16)


def test_percentiles_are_values_of_images():
    found = percentiles(torch.arange(100, dtype=torch.float64))
    assert found == {"1": 0.0, "5": 4.0, "25": 24.0, "50": 49.0, "75": 74.0, "95": 94.0, "99": 98.0}
    assert percentiles(torch.tensor([1.0, float("inf")]))["99"] == float("inf")


def test_nothing_to_join(tmp_path):
    with pytest.raises(ValueError, match="no images to measure"):
        assemble([pair([])], {}, tmp_path)
