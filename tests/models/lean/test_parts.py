import pytest
import torch

from latentae.models.lean import parts
from latentae.models.lean.parts import plus, split_batch


@pytest.mark.parametrize(("values", "sizes"), [(24, [2, 2, 1]), (35, [2, 2, 1]), (1, [1] * 5), (10**6, [5])])
def test_parts_hold_as_many_images_as_values_allow(monkeypatch, values, sizes):
    monkeypatch.setitem(parts._VALUES_AT_ONCE, "cpu", values)
    batch = torch.zeros(5, 3, 2, 2)
    slices = split_batch(batch)
    assert [len(batch[part]) for part in slices] == sizes


def test_a_batch_without_images_has_no_parts():
    assert split_batch(torch.zeros(0, 3, 2, 2)) == []


def test_sums_begin_with_what_is_there():
    first = torch.ones(2)
    assert plus(None, None) is None
    assert plus(None, first) is first
    assert plus(first, None) is first
    assert plus(first, torch.tensor([1.0, 2.0])) is first
    assert first.tolist() == [2.0, 3.0]
