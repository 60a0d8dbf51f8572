import json

import numpy as np
import pytest

from latentae.data import HeldOut, SubsetSource, split_holdout
from latentae.data.holdout import choose_held_out, hold_out, read_held_out
from tests.data.pictures import ListShards, ListSource
from tests.data.pictures import names as image_names


def names(source) -> set[str]:
    return {source.name(index) for index in range(len(source))}


def test_sides_are_disjoint_complete_and_of_the_asked_size():
    train, validation = split_holdout(ListSource(4000), 0.05)
    assert names(train) | names(validation) == {f"picture{index}" for index in range(4000)}
    assert not names(train) & names(validation)
    assert len(validation) == pytest.approx(200, abs=45)  # three standard deviations
    assert np.all(np.diff(train.indices) > 0)


def test_is_deterministic_and_seeded():
    first, again, other = (split_holdout(ListSource(500), 0.1, seed)[1] for seed in (0, 0, 1))
    assert names(first) == names(again)
    assert names(first) != names(other)
    # What a run held out must stay held out in every later version: these are part of the format.
    assert first.indices[:4].tolist() == [8, 10, 20, 30]


def test_images_do_not_change_sides_when_others_come():
    few, many = split_holdout(ListSource(500), 0.1)[1], split_holdout(ListSource(900), 0.1)[1]
    assert names(few) == {name for name in names(many) if int(name.removeprefix("picture")) < 500}
    reverse = SubsetSource(ListSource(500), np.arange(500)[::-1])
    assert names(split_holdout(reverse, 0.1)[1]) == names(few)


@pytest.mark.parametrize("share", [1e-9, 1 - 1e-9])
def test_neither_side_is_empty(share):
    train, validation = split_holdout(ListSource(2), share)
    assert (len(train), len(validation)) == (1, 1)


def test_errors():
    for share in (0, 1, -0.1, 5):
        with pytest.raises(ValueError, match=f"holdout={share} must lie between 0 and 1"):
            split_holdout(ListSource(9), share)
    with pytest.raises(ValueError, match=r"1 image.* too few"):
        split_holdout(ListSource(1), 0.5)


class NamedSource(ListSource):
    """Pictures whose keys are given."""

    def __init__(self, keys: list[str]) -> None:
        super().__init__(len(keys))
        self.keys = keys

    def key(self, index: int) -> str:
        return self.keys[index]


def held_out_keys(source: NamedSource, part: SubsetSource) -> set[str]:
    return {source.key(int(index)) for index in part.indices}


def test_keys_decide_where_names_depend_on_the_other_images():
    few, many = (NamedSource([f"b/{i}" for i in range(300)]), NamedSource([f"a/{i}" for i in range(200)]))
    many.keys += few.keys
    many.count = 500
    before = held_out_keys(few, split_holdout(few, 0.1)[1])
    assert {k for k in held_out_keys(many, split_holdout(many, 0.1)[1]) if k.startswith("b/")} == before


@pytest.mark.parametrize("share", [1e-9, 1 - 1e-9])
def test_what_few_images_needed_is_remembered(share):
    few = NamedSource(["x", "y", "z"])
    _, measured, record = hold_out(few, share)
    assert record.images
    many = NamedSource([*(f"new{index}" for index in range(50)), "x", "y", "z"])
    again = hold_out(many, share, before=HeldOut.from_dict(json.loads(json.dumps(record.to_dict()))))[1]
    assert held_out_keys(few, measured) == held_out_keys(many, again) & {"x", "y", "z"}


def test_a_run_without_a_record_goes_by_names():
    source = NamedSource([f"k{index}" for index in range(200)])
    plain = split_holdout(ListSource(200), 0.1)[1]
    assert hold_out(source, 0.1, before=HeldOut(by_name=True))[1].indices.tolist() == plain.indices.tolist()
    with pytest.raises(ValueError, match="no record of held-out images"):
        HeldOut.from_dict({"images": 3})


def test_a_share_of_each_shard_is_held_out_until_there_are_enough():
    shards = ListShards([10] * 4)
    assert choose_held_out(shards, 0.2, most=100) == {0: 2, 1: 2, 2: 2, 3: 2}
    assert choose_held_out(shards, 0.2, most=5) == {0: 2, 1: 2, 2: 1}
    assert choose_held_out(shards, 0.2, most=1) == {0: 1}
    assert image_names(read_held_out(shards, {0: 2, 2: 1})) == ["picture0", "picture1", "picture32"]


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
