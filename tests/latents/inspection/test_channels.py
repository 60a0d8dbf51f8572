import math

import pytest
import torch

from latentae.latents.inspection.channels import GaussianFit, LatentGaussian, fit_gaussian


def test_mean_and_covariance_by_hand():
    # two positions: channel 0 is 1 and 3, channel 1 is 10 and 6
    gaussian = fit_gaussian(torch.tensor([[[[1.0, 3.0]], [[10.0, 6.0]]]]))
    assert gaussian.mean.tolist() == [2, 8]
    assert gaussian.covariance.tolist() == [[1, -2], [-2, 4]]
    assert gaussian.correlation.tolist() == [[1, -1], [-1, 1]]
    assert (gaussian.images, gaussian.positions) == (1, 2)
    assert gaussian.std.tolist() == [1, 2]


@pytest.mark.parametrize("size", [1, 3, 10])
def test_batches_do_not_matter_and_a_large_mean_costs_nothing(size):
    latents = torch.randn(10, 3, 4, 4, dtype=torch.float64, generator=torch.manual_seed(0)) + 1e6
    whole = latents.transpose(0, 1).flatten(1)
    gaussian = fit_gaussian(latents.split(size))
    torch.testing.assert_close(gaussian.covariance, torch.cov(whole, correction=0), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(gaussian.mean, whole.mean(dim=1), rtol=1e-14, atol=0)


def test_samples_have_what_was_fitted():
    true = LatentGaussian(
        1, 1, torch.tensor([3.0, -1.0]).double(), torch.tensor([[4.0, 1.2], [1.2, 0.5]]).double()
    )
    again = fit_gaussian(true.sample(400, (16, 16), seed=5))
    torch.testing.assert_close(again.mean, true.mean, rtol=0, atol=0.03)
    torch.testing.assert_close(again.covariance, true.covariance, rtol=0.02, atol=0)


def test_positions_of_samples_are_independent():
    true = LatentGaussian(1, 1, torch.zeros(1).double(), torch.eye(1).double())
    samples = true.sample(400, (8, 8))
    assert abs((samples[..., 1:] * samples[..., :-1]).mean().item()) < 0.02


def test_a_sample_is_a_function_of_seed_and_index():
    true = LatentGaussian(1, 1, torch.zeros(2).double(), torch.eye(2).double())
    assert torch.equal(true.sample(5, (3, 2), seed=1)[:2], true.sample(2, (3, 2), seed=1))
    assert not torch.equal(true.sample(2, (3, 2), seed=1), true.sample(2, (3, 2), seed=2))


def test_divergence_by_hand():
    # of N(1, 4) from N(0, 1): (4 + 1 - 1 - ln 4) / 2; of two independent channels the sum
    one = LatentGaussian(1, 1, torch.tensor([1.0]).double(), torch.tensor([[4.0]]).double())
    assert one.divergence == pytest.approx((4 - math.log(4)) / 2, abs=1e-12)
    two = LatentGaussian(
        1, 1, torch.tensor([1.0, 0.0]).double(), torch.diag(torch.tensor([4.0, 1.0])).double()
    )
    assert two.divergence == pytest.approx(one.divergence, abs=1e-12)


def test_a_constant_channel_is_named_and_makes_no_nan():
    latents = torch.randn(4, 3, 2, 2, generator=torch.manual_seed(0))
    latents[:, 1] = 0.7
    gaussian = fit_gaussian(latents)
    assert gaussian.constant == [1]
    assert gaussian.correlation[1].tolist() == [0, 1, 0]
    assert gaussian.divergence is None
    samples = gaussian.sample(3, (2, 2))
    torch.testing.assert_close(samples[:, 1], torch.full((3, 2, 2), 0.7).double(), rtol=1e-6, atol=1e-6)


def test_nothing_and_other_channels_are_refused():
    with pytest.raises(ValueError, match="no latents"):
        fit_gaussian([])
    fit = GaussianFit()
    fit.add(torch.zeros(1, 2, 1, 1))
    with pytest.raises(ValueError, match="latents of 3 channels follow latents of 2"):
        fit.add(torch.zeros(1, 3, 1, 1))
