import pytest
import torch

from latentae import distributed
from latentae.training.meter import Meter


def test_means_since_the_last_reading():
    meter = Meter()
    meter.add({"loss": torch.tensor(1.0), "late": torch.tensor(5.0)})
    meter.add({"loss": torch.tensor(3.0)})
    meter.commit()
    assert meter.read() == pytest.approx({"loss": 2.0, "late": 5.0})
    assert meter.read() == {}


def test_a_scalar_that_changes_later_does_not_change_the_mean():
    meter = Meter()
    value = torch.tensor(1.0)
    meter.add({"loss": value})
    value.fill_(100.0)
    meter.commit()
    assert meter.read() == {"loss": 1.0}


def test_a_step_that_was_not_made_counts_for_nothing():
    meter = Meter()
    meter.add({"loss": torch.tensor(1.0)})
    meter.commit(torch.tensor(True))
    meter.add({"loss": torch.tensor(float("nan")), "other": torch.tensor(2.0)})
    meter.commit(torch.tensor(False))
    assert meter.read() == {"loss": 1.0}


def test_a_resumed_meter_goes_on_where_it_stopped():
    meter, resumed = Meter(), Meter()
    meter.add({"loss": torch.tensor(0.1), "seldom": torch.tensor(7.0)})
    meter.commit()
    meter.add({"loss": torch.tensor(9.0)})  # of a step that no checkpoint has
    resumed.load_state_dict(meter.state_dict())
    resumed.add({"loss": torch.tensor(0.3)})
    resumed.commit()
    assert resumed.read() == pytest.approx({"loss": 0.2, "seldom": 7.0})
    resumed.load_state_dict(Meter().state_dict())
    assert resumed.read() == {}


@pytest.mark.parametrize(("rank", "expected"), [(0, 4.0), (1, None)])
def test_with_another_number_of_ranks_the_first_takes_all(monkeypatch, rank, expected):
    state = {"names": ["loss"], "ranks": torch.tensor([[[2.0, 1.0]], [[4.0, 1.0]], [[6.0, 1.0]]])}
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    meter = Meter()
    meter.load_state_dict(state)
    monkeypatch.undo()  # read as if the other rank had nothing
    assert meter.read().get("loss") == expected
