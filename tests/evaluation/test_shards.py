import torch

from latentae.evaluation.blocks import Block
from latentae.evaluation.shards import Shards, content_sha256


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
    images = [torch.zeros(1, 2, 4), torch.ones(1, 2, 2)]
    same = content_sha256(Block(0, images=images))
    assert same == content_sha256(Block(7, names=["else"], images=[image.clone() for image in images]))
    assert same != content_sha256(Block(0, images=[torch.zeros(1, 4, 2), images[1]]))
    images[1][0, 0, 0] += 1e-6
    assert same != content_sha256(Block(0, images=images))
