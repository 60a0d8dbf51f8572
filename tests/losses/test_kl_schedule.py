import pytest

from latentae.losses.kl_schedule import Cyclical, LinearWarmup, constant


def test_constant():
    assert [constant(step) for step in (0, 10**9)] == [1.0, 1.0]


def test_linear_warm_up_by_hand():
    schedule = LinearWarmup(4)
    assert [schedule(step) for step in range(6)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]


def test_two_cycles_by_hand():
    schedule = Cyclical(cycle_steps=8, cycles=2, ratio=0.5)
    cycle = [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]
    assert [schedule(step) for step in range(20)] == [*cycle, *cycle, *[1.0] * 4]


@pytest.mark.parametrize("ratio", [0.25, 0.5, 1.0])
def test_a_cycle_is_the_papers_formula(ratio):
    """T = 1000 steps in M = 4 cycles; the paper counts steps from t = 1."""
    schedule = Cyclical(cycle_steps=250, cycles=4, ratio=ratio)
    for t in range(1, 1001):
        tau = (t - 1) % (1000 // 4) / (1000 / 4)
        assert schedule(t - 1) == pytest.approx(tau / ratio if tau <= ratio else 1.0)
