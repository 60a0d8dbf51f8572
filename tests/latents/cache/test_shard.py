import pytest
import torch

from latentae.latents.cache.folder import ShardEntry
from latentae.latents.cache.shard import (
    ShardReader,
    check_shard,
    describe_shard,
    is_whole,
    shard_names,
    write_shard,
)

MEAN = torch.arange(24.0).reshape(3, 2, 2, 2)


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "latents_8x8_00000.safetensors"
    tensors = {"mean": MEAN, "indices": torch.tensor([4, 6, 7])}
    write_shard(path, tensors, texts={"names": ["a", "", "ä/é.png"]}, skipped=["b: broken"])
    return path


def test_rows_and_texts_come_back(shard):
    entry, skipped = describe_shard(shard, (8, 8))
    assert entry == ShardEntry(shard.name, shard.stat().st_size, 3, [2, 2, 2], [8, 8])
    assert skipped == ["b: broken"]
    assert shard_names(shard) == {"mean", "indices", "names", "names_ends"}
    reader = ShardReader(shard, entry)
    assert torch.equal(reader.row("mean", 1), MEAN[1])
    assert [reader.text("names", position) for position in range(3)] == ["a", "", "ä/é.png"]
    assert reader.whole("indices").tolist() == [4, 6, 7]


def test_a_shard_without_images(tmp_path):
    path = tmp_path / "empty.safetensors"
    write_shard(
        path, {"indices": torch.zeros(0, dtype=torch.int64)}, texts={"names": []}, skipped=["b: broken"]
    )
    entry, _ = describe_shard(path, (8, 8))
    assert (entry.images, entry.shape) == (0, [])


def test_a_shard_cut_short_is_named_with_a_remedy(shard):
    entry, _ = describe_shard(shard, (8, 8))
    whole = shard.read_bytes()
    assert is_whole(shard)
    shard.write_bytes(whole[:-1])
    assert not is_whole(shard)
    with pytest.raises(
        ValueError, match=rf"{shard.name} is cut short: {len(whole) - 1} bytes of .*remove the"
    ):
        check_shard(shard, entry)
    shard.write_bytes(whole + b"1")
    with pytest.raises(ValueError, match="is changed"):
        check_shard(shard, entry)
    shard.write_bytes(b"\xff" * len(whole))
    with pytest.raises(ValueError, match=rf"{shard.name} is damaged \(.*remove the file"):
        ShardReader(shard, entry)
    shard.unlink()
    assert not is_whole(shard)
    with pytest.raises(ValueError, match=rf"{shard.name} is missing: the command .* makes this shard anew"):
        check_shard(shard, entry)
