from collections import Counter
from itertools import islice

import pytest
import torch

from latentae.data import BrokenImageError, ImageStream, RandomCrop, StreamPlace
from tests.data.pictures import ListShards
from tests.data.test_dataset import value

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
