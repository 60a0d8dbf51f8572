import pytest

from latentae.data import ImageDataset, ImageStream, RandomCrop, describe_size, epoch_size, sample_dataset
from latentae.data.stream_source import choose_held_out, read_first, read_held_out
from tests.data.pictures import ListShards, ListSource


def names(source) -> list[str]:
    return [source.name(index) for index in range(len(source))]


def pictures(*indices: int) -> list[str]:
    return [f"picture{index}" for index in indices]


def test_a_share_of_each_shard_is_held_out_until_there_are_enough():
    shards = ListShards([10] * 4)
    assert choose_held_out(shards, 0.2, most=100) == {0: 2, 1: 2, 2: 2, 3: 2}
    assert choose_held_out(shards, 0.2, most=5) == {0: 2, 1: 2, 2: 1}
    assert choose_held_out(shards, 0.2, most=1) == {0: 1}
    assert names(read_held_out(shards, {0: 2, 2: 1})) == pictures(0, 1, 32)


def test_small_data_keep_something_to_train_on():
    assert choose_held_out(ListShards([2]), 0.05, most=100) == {0: 1}
    assert choose_held_out(ListShards([1] * 100), 0.05, most=100) == dict.fromkeys(range(5), 1)
    for typical in range(1, 12):
        for count in range(1, 9):
            if typical * count < 2:
                continue
            for share in (0.01, 0.3, 0.5):
                held_out = choose_held_out(ListShards([typical] * count), share, most=1000)
                assert 1 <= sum(held_out.values()) <= max(1, share * typical * count)
                assert max(held_out.values()) <= max(1, share * typical)
                assert max(held_out) < count
    with pytest.raises(ValueError, match=r"1 image.* too few to hold one out"):
        choose_held_out(ListShards([1]), 0.5, most=10)
    with pytest.raises(ValueError, match="holdout=1"):
        choose_held_out(ListShards([5]), 1, most=10)


def test_the_first_images_of_shards_spread_over_all():
    shards = ListShards([10] * 4)
    assert names(read_first(shards, 6)) == pictures(0, 16, 17, 32, 48, 49)
    assert names(read_first(shards, 2)) == pictures(0, 32)
    assert len(read_first(ListShards([10] * 40), 40)) == 40
    assert names(read_first(ListShards([1, 10]), 6)) == pictures(0, 16, 17, 18)
    assert names(read_first(shards, 4, {0: 3, 2: 1})) == pictures(3, 16, 33, 48)


def test_a_stream_sampled_for_what_needs_any_order():
    stream = ImageStream(ListShards([10] * 2), RandomCrop(4), 3, seed=6, held_out={0: 4})
    sample = sample_dataset(stream, 5)
    assert [sample.name(index) for index in range(len(sample))] == pictures(4, 5, 16, 17, 18)
    assert (sample.transform, sample.channels, sample.seed) == (stream.transform, 3, 6)
    assert sample[0, 0]["images"][2].add(1).mul(127.5).round().mean() == 4
    plain = ImageDataset(ListSource(3), RandomCrop(4), 3)
    assert sample_dataset(plain) is plain


def test_sizes_for_people():
    assert describe_size(ImageDataset(ListSource(12), RandomCrop(4), 3)) == "12"
    assert describe_size(ImageStream(ListShards([1]), RandomCrop(4), 3)) == "1 shard of"
    assert describe_size(ImageStream(ListShards([1, 2]), RandomCrop(4), 3)) == "2 shards of"


def test_images_of_an_epoch():
    assert epoch_size(ImageDataset(ListSource(12), RandomCrop(4), 3)) == 12
    assert epoch_size(ImageStream(ListShards([3, 3]), RandomCrop(4), 3, held_out={0: 1})) == 5
    assert epoch_size(ImageStream(ListShards([1]), RandomCrop(4), 3, held_out={0: 1})) == 1
