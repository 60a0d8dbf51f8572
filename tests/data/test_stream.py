from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch

from latentae.data import (
    BrokenImageError,
    ImageDataset,
    ImageStream,
    RandomCrop,
    StreamPlace,
    describe_size,
    epoch_size,
    sample_dataset,
)
from latentae.data.stream import epoch_pieces, read_first
from tests.data.pictures import ListShards, ListSource, names
from tests.data.test_dataset import value


def images_of(num_shards: int, readers: int, epoch: int, count: int = 10) -> list[tuple[int, int]]:
    """(shard, row) of all readers' images in an epoch, where every shard has `count`."""
    return [
        (piece.shard, row)
        for reader in range(readers)
        for piece in epoch_pieces(num_shards, StreamPlace(0, reader, readers), epoch)
        for row in range(piece.offset, count, piece.step)
    ]


@pytest.mark.parametrize(("num_shards", "readers"), [(1, 1), (7, 1), (7, 3), (8, 8), (3, 8), (1, 5)])
def test_all_readers_together_have_each_image_once(num_shards, readers):
    every = [(shard, row) for shard in range(num_shards) for row in range(10)]
    for epoch in range(3):
        assert sorted(images_of(num_shards, readers, epoch)) == every


def test_the_order_is_a_function_of_seed_and_epoch():
    def order(seed: int, epoch: int) -> list[int]:
        return [piece.shard for piece in epoch_pieces(50, StreamPlace(seed), epoch)]

    assert order(3, 1) == order(3, 1)
    assert len({tuple(order(seed, epoch)) for seed in (0, 3) for epoch in range(3)}) == 6


def test_shards_are_shared_only_where_readers_outnumber_them():
    assert {piece.step for piece in epoch_pieces(4, StreamPlace(0, 1, 4), 0)} == {1}
    (piece,) = epoch_pieces(4, StreamPlace(0, 1, 8), 0)
    assert piece.step == 2
    assert piece.offset in (0, 1)


def test_the_one_more_shard_goes_round():
    counts = np.array(
        [
            [len(epoch_pieces(5, StreamPlace(0, reader, 3), epoch)) for reader in range(3)]
            for epoch in range(6)
        ]
    )
    assert counts.sum(axis=1).tolist() == [5] * 6
    assert counts[:3].sum(axis=0).tolist() == [5, 5, 5]
    assert counts[3:].sum(axis=0).tolist() == [5, 5, 5]


COUNTS = [5, 3, 7, 4]  # 19 images


def stream(shards=None, **options) -> ImageStream:
    options = {"channels": 3, "shuffle_block": 4, **options}
    shards = ListShards(COUNTS) if shards is None else shards
    return ImageStream(shards, RandomCrop(4, (1, 1.5), flip=True), **options)


def drawn(data: ImageStream, place: StreamPlace, start: int, count: int) -> list[tuple[int, int]]:
    """(epoch, index) of a reader's images."""
    return [(image.epoch, image.index) for image in islice(data.images(place, start), count)]


def test_each_image_comes_once_an_epoch():
    images = drawn(stream(), StreamPlace(0), 0, 19 * 3 + 4)
    every = {(shard << 32) + row for shard, count in enumerate(COUNTS) for row in range(count)}
    for epoch in range(3):
        assert sorted(index for number, index in images if number == epoch) == sorted(every)


@pytest.mark.parametrize("readers", [2, 3, 6])
def test_readers_share_each_epoch_without_overlap(readers):
    images = Counter()
    for reader in range(readers):
        images.update(drawn(stream(), StreamPlace(0, reader, readers), 0, 60))
    assert max(images.values()) == 1
    assert sum(epoch == 0 for epoch, _ in images) == 19


@pytest.mark.parametrize("readers", [1, 3, 6])
@pytest.mark.parametrize("start", [1, 4, 18, 19, 20, 57, 200])
def test_a_reader_that_starts_later_goes_on(readers, start):
    for reader in range(readers):
        place = StreamPlace(5, reader, readers)
        whole = drawn(stream(), place, 0, start + 25)
        assert drawn(stream(), place, start, 25) == whole[start:]


def test_shards_before_the_start_are_not_read():
    shards = ListShards([10] * 8)
    data = stream(shards)
    next(data.images(StreamPlace(0), 80 * 3 + 65))  # block 16 of epoch 3 begins at image 64
    ((_, first, step),) = shards.opened
    assert (first, step) == (4, 1)
    assert len(shards.source.loaded) == 0


def test_blocks_are_shuffled_and_no_more():
    images = drawn(stream(ListShards([16] * 4), shuffle_block=8), StreamPlace(0), 0, 64)
    plain = drawn(stream(ListShards([16] * 4), shuffle_block=1), StreamPlace(0), 0, 64)
    assert images != plain
    for begin in range(0, 64, 8):
        assert sorted(images[begin : begin + 8]) == sorted(plain[begin : begin + 8])
    orders = {
        tuple(plain.index(image) - begin for image in images[begin : begin + 8]) for begin in range(0, 64, 8)
    }
    assert len(orders) > 5


def test_what_is_held_out_is_not_trained_on():
    data = stream(held_out={0: 2, 2: 1})
    for readers in (1, 6):
        indices = {
            index
            for reader in range(readers)
            for epoch, index in drawn(data, StreamPlace(0, reader, readers), 0, 40)
            if epoch == 0
        }
        every = {(shard << 32) + row for shard, count in enumerate(COUNTS) for row in range(count)}
        assert every - indices == {0, 1, 2 << 32}
    place = StreamPlace(0, 1, 3)
    assert drawn(data, place, 31, 9) == drawn(data, place, 0, 40)[31:]


def test_samples_depend_on_seed_epoch_and_image_only():
    def samples(readers: int, seed: int) -> dict[tuple[int, int], torch.Tensor]:
        data = stream(seed=seed)
        return {
            (image.epoch, image.index): data.sample(image)["images"]
            for reader in range(readers)
            for image in islice(data.images(StreamPlace(0, reader, readers)), 30)
        }

    one, three = samples(1, 4), samples(3, 4)
    common = one.keys() & three.keys()
    assert len(common) >= 19
    assert all(torch.equal(one[key], three[key]) for key in common)
    assert any(not torch.equal(one[key], value) for key, value in samples(1, 5).items() if key in one)


def test_a_broken_image_is_replaced_by_one_of_its_block():
    data = stream(ListShards([16], broken=(3, 4, 5)), shuffle_block=8)
    runs = [
        [data.sample(image) for image in islice(data.images(StreamPlace(0), start), 32 - start)]
        for start in (0, 5)
    ]
    assert [value(sample) for sample in runs[0][5:]] == [value(sample) for sample in runs[1]]
    replaced = [sample for sample in runs[0] if sample["broken"]]
    assert {sample["index"] for sample in replaced} == {3, 4, 5}
    for sample in replaced:
        assert sample["broken"].split("\n")[0] == f"picture{sample['index']}: it is broken"
        assert value(sample) not in (3, 4, 5)
        assert sample["name"] == f"picture{value(sample)}"


def test_resolutions():
    data = stream(resolutions=[RandomCrop((2, 6)), RandomCrop((6, 2))])
    image = next(data.images(StreamPlace(0)))
    shapes = [tuple(data.sample(image, choice)["images"].shape[1:]) for choice in (None, 0, 1)]
    assert shapes == [(4, 4), (2, 6), (6, 2)]


def test_nothing_to_train_on():
    with pytest.raises(BrokenImageError, match=r"the 2 shard\(s\) hold no image"):
        next(stream(ListShards([0, 0])).images(StreamPlace(0)))
    assert drawn(stream(ListShards([3])), StreamPlace(0, 3, 4), 0, 1)  # of 4 readers each has a turn
    data = stream(ListShards([4], broken=(0, 1, 2, 3)), max_retries=2)
    image = next(data.images(StreamPlace(0)))
    with pytest.raises(BrokenImageError, match="3 images in a row"):
        data.sample(image)


def test_bad_arguments():
    with pytest.raises(ValueError, match="no shards"):
        stream(ListShards([]))
    for name in ("shuffle_block", "seed", "max_retries"):
        with pytest.raises(ValueError, match=f"{name}=-1"):
            stream(**{name: -1})


def pictures(*indices: int) -> list[str]:
    return [f"picture{index}" for index in indices]


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
