import pytest
import torch

from latentae.evaluation.bootstrap import bootstrap_interval


def test_is_that_of_the_normal_approximation():
    values = torch.randn(2000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    interval = bootstrap_interval(values)
    mean, half = values.mean().item(), 1.96 * values.std().item() / 2000**0.5
    assert interval.low == pytest.approx(mean - half, abs=0.1 * half)
    assert interval.high == pytest.approx(mean + half, abs=0.1 * half)
    assert interval == bootstrap_interval(values)
    wider = bootstrap_interval(values, confidence=0.99)
    assert wider.low < interval.low < interval.high < wider.high


def test_one_value_has_no_spread():
    interval = bootstrap_interval(torch.tensor([3.0]))
    assert (interval.low, interval.high) == (3.0, 3.0)


def test_bad_input():
    with pytest.raises(ValueError, match="N of 1 or more"):
        bootstrap_interval(torch.zeros(0))
    with pytest.raises(ValueError, match=r"confidence is 1\.0"):
        bootstrap_interval(torch.ones(2), confidence=1.0)
