import pickle

import numpy as np
import pytest

from latentae.data import CachedSource, SubsetSource, take_evenly
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


def test_a_pickled_cache_is_empty():
    cached = CachedSource(ListSource(3))
    cached.load(0, 3)
    copy = pickle.loads(pickle.dumps(cached))
    assert copy.used_bytes == 0
    assert cached.used_bytes == 432
    copy.load(0, 3)
    assert copy.source.loaded == [(0, None), (0, None)]
