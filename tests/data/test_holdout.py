import numpy as np
import pytest

from latentae.data import SubsetSource, split_holdout
from tests.data.pictures import ListSource


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
