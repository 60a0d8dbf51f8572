import torch

from latentae.evaluation.blocks import Block
from latentae.evaluation.shards import Shards, content_sha256, from_text, reference_cache, to_text


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
