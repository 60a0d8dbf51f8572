import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from latentae.data import CachedSource, ImageDataset, RandomCrop, SubsetSource, check_images, take_evenly
from latentae.data import source as module
from tests.data.pictures import ListSource


def test_subset():
    subset = SubsetSource(ListSource(10), np.array([7, 2]))
    assert len(subset) == 2
    assert [subset.name(index) for index in range(2)] == ["picture7", "picture2"]
    assert subset.load(0, 1)[0, 0, 0] == 7
    subset.load(1, 3, 40)
    assert subset.source.loaded == [(7, None), (2, 40)]


def test_some_are_taken_evenly():
    source = ListSource(10)
    few = take_evenly(source, 4)
    assert [few.name(index) for index in range(len(few))] == ["picture0", "picture2", "picture5", "picture7"]
    assert take_evenly(source, 10) is source


def test_cache_decodes_once_for_each_request():
    source = ListSource(3)
    cached = CachedSource(source)
    first = cached.load(1, 3)
    assert np.array_equal(first, source.load(1, 3))
    assert cached.load(1, 3) is first
    assert not first.flags.writeable
    cached.load(1, 1)
    cached.load(1, 3, minimum_side=5)
    assert source.loaded == [(1, None), (1, None), (1, None), (1, 5)]
    assert (len(cached), cached.name(2)) == (3, "picture2")
    assert cached.used_bytes == 12 * 12 * (3 + 1 + 3)


def test_a_full_cache_keeps_what_it_has():
    source = ListSource(5)
    cached = CachedSource(source, max_bytes=2 * 12 * 12 * 3)
    for _ in range(2):
        for index in range(5):
            assert cached.load(index, 3)[0, 0, 2] == index
    assert cached.used_bytes == 2 * 12 * 12 * 3
    assert [index for index, _ in source.loaded] == [0, 1, 2, 3, 4, 2, 3, 4]


def test_the_array_of_the_source_stays_writeable():
    class OneArray(ListSource):
        array = np.zeros((2, 2, 3), np.uint8)

        def load(self, index, channels, minimum_side=None):
            return self.array

    cached = CachedSource(OneArray(1)).load(0, 3)
    assert OneArray.array.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        cached[0] = 1


def test_a_pickled_cache_is_empty_and_leaves_its_memory_to_the_copy():
    cached = CachedSource(ListSource(3), max_bytes=1000)
    cached.load(0, 3)
    copy = pickle.loads(pickle.dumps(cached))
    assert (copy.used_bytes, copy.max_bytes) == (0, 1000)
    assert cached.used_bytes == 0
    copy.load(0, 3)
    assert copy.source.loaded == [(0, None), (0, None)]


def test_workers_share_the_memory(monkeypatch):
    size = 12 * 12 * 3
    cached = CachedSource(ListSource(8), max_bytes=6 * size)
    cached.load(0, 3)
    monkeypatch.setattr(module, "worker_number", lambda: (1, 3))  # forked, with the image that was held
    for index in range(8):
        cached.load(index, 3)
    assert cached.used_bytes == 2 * size
    assert [cached.load(index, 3)[0, 0, 2] for index in range(8)] == list(range(8))


def test_threads_keep_to_the_memory():
    cached = CachedSource(ListSource(64), max_bytes=10 * 12 * 12 * 3)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda index: cached.load(index % 64, 3), range(640)))
    assert cached.used_bytes == 10 * 12 * 12 * 3 == sum(image.nbytes for image in cached._images.values())


def test_the_cache_says_what_it_has_room_for():
    size = 12 * 12 * 3
    cached = CachedSource(ListSource(1000), max_bytes=40 * size)
    assert cached.describe_cache() == ""
    cached.load(0, 3)
    cached.load(1, 3)
    assert "room for about 40 of 1,000" in cached.describe_cache()
    few = CachedSource(ListSource(3), max_bytes=40 * size)
    few.load(0, 3)
    assert "room for all of 3" in few.describe_cache()


def test_what_the_start_decodes_is_what_training_draws():
    source = ListSource(60)
    cached = CachedSource(source, max_bytes=30 * 12 * 12 * 3)
    dataset = ImageDataset(cached, RandomCrop(8), channels=3)
    assert check_images(cached, 3, 60, dataset.minimum_side) == []
    source.loaded.clear()
    for index in range(60):
        dataset[0, index]
    assert len(source.loaded) == 30
