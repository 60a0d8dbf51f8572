import pytest
from torch.utils.data import DataLoader

from latentae.latents.cache.bucketing import SameShapeBatches

SHAPES = [(4, 8, 8)] * 5 + [(4, 4, 16)] * 3


def test_each_image_once_and_one_shape_a_batch():
    batches = SameShapeBatches(SHAPES, 2, seed=3)
    drawn = list(DataLoader(range(8), batch_sampler=batches, collate_fn=list))
    assert sorted(index for batch in drawn for index in batch) == list(range(8))
    assert all(len({SHAPES[index] for index in batch}) == 1 for batch in drawn)
    assert sorted(len(batch) for batch in drawn) == [1, 1, 2, 2, 2]
    assert len(batches) == len(drawn) == 5


def test_the_order_is_a_function_of_seed_and_epoch():
    batches, again = (SameShapeBatches(SHAPES, 2, seed=3) for _ in range(2))
    first = list(batches)
    assert list(again) == first
    batches.set_epoch(1)
    assert list(batches) != first
    assert list(SameShapeBatches(SHAPES, 2, seed=4)) != first


def test_small_batches_can_be_left_out():
    batches = SameShapeBatches(SHAPES, 2, drop_last=True)
    assert [len(batch) for batch in batches] == [2, 2, 2]
    assert len(batches) == 3


def test_a_batch_size_below_one_is_refused():
    with pytest.raises(ValueError, match="batch_size is 0"):
        SameShapeBatches(SHAPES, 0)
