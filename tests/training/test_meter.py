import pytest
import torch

from latentae.training.meter import Meter


def test_means_and_health_since_the_last_reading():
    meter = Meter(num_codes=4)
    meter.add({"loss": torch.tensor(1.0), "late": torch.tensor(5.0)}, torch.tensor([[[0, 0]]]))
    meter.add({"loss": torch.tensor(3.0)}, torch.tensor([[[1, 1]]]))
    meter.commit()
    numbers = meter.read()
    assert numbers == pytest.approx(
        {"loss": 2.0, "late": 5.0, "codebook_usage": 0.5, "codebook_perplexity": 2.0}
    )
    assert meter.read() == {}


def test_a_scalar_that_changes_later_does_not_change_the_mean():
    meter = Meter()
    value = torch.tensor(1.0)
    meter.add({"loss": value})
    value.fill_(100.0)
    meter.commit()
    assert meter.read() == {"loss": 1.0}


def test_a_step_that_was_not_made_counts_for_nothing():
    meter = Meter(num_codes=2)
    meter.add({"loss": torch.tensor(1.0)}, torch.tensor([[[0]]]))
    meter.commit(torch.tensor(True))
    meter.add({"loss": torch.tensor(float("nan")), "other": torch.tensor(2.0)}, torch.tensor([[[1]]]))
    meter.commit(torch.tensor(False))
    assert meter.read() == {"loss": 1.0, "codebook_usage": 0.5, "codebook_perplexity": 1.0}


def test_codes_of_several_tables():
    meter = Meter(num_codes=4)
    for second in (2, 3):
        meter.add({}, torch.tensor([[[[0, 1]], [[second, second]]]]))  # [B, depth, h, w]
        meter.commit()
    assert meter.read() == pytest.approx({"codebook_usage": 4 / 8, "codebook_perplexity": 2.0})
