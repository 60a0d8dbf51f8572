import pytest
import torch

from latentae.evaluation.cycle import cycle_drift
from latentae.evaluation.metrics import psnr


def darken(images):
    return images - 10 / 127.5


def test_each_round_adds_its_error():
    images = torch.zeros(2, 1, 4, 4)
    drift = cycle_drift(darken, images, rounds=(1, 3))
    assert list(drift) == [1, 3]
    # 0 is level 128 after rounding; each round takes ten levels away, after the half that rounding adds.
    for number, values in drift.items():
        exact = psnr(images - number * 10 / 127.5, images)
        assert values.tolist() == pytest.approx(exact.tolist(), abs=0.5)
    assert (drift[3] < drift[1]).all()


def test_a_first_round_that_is_there_is_not_run_again():
    calls = []

    def counted(images):
        calls.append(1)
        return darken(images)

    images = torch.zeros(1, 1, 4, 4)
    given = cycle_drift(counted, images, rounds=(1, 2), first=darken(images))
    assert len(calls) == 1
    assert given == cycle_drift(darken, images, rounds=(1, 2))


@pytest.mark.parametrize("rounds", [(), (0, 1), (2, 2)])
def test_bad_rounds(rounds):
    with pytest.raises(ValueError, match="must be 1 or more and rise"):
        cycle_drift(darken, torch.zeros(1, 1, 4, 4), rounds=rounds)
