import pytest
import torch

from latentae.training.meter import Meter


def test_means_and_health_since_the_last_reading():
    meter = Meter(num_codes=4)
    meter.add({"loss": torch.tensor(1.0), "late": torch.tensor(5.0)}, torch.tensor([[[0, 0]]]))
    meter.add({"loss": torch.tensor(3.0)}, torch.tensor([[[1, 1]]]))
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
    assert meter.read() == {"loss": 1.0}
