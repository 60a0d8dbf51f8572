import math

import numpy as np
import pytest
import torch

from latentae.latents.inspection import channels
from latentae.latents.inspection.channels import (
    LatentGaussian,
    channel_correlations,
    channel_histograms,
    constant_channels,
    fit_gaussian,
    normal_noise,
)
from tests.latents.inspection.conftest import ink


def test_mean_and_covariance_by_hand():
    # two positions: channel 0 is 1 and 3, channel 1 is 10 and 6
    gaussian = fit_gaussian(torch.tensor([[[[1.0, 3.0]], [[10.0, 6.0]]]]))
    assert gaussian.mean.tolist() == [2, 8]
    assert gaussian.covariance.tolist() == [[1, -2], [-2, 4]]
    assert gaussian.correlation.tolist() == [[1, -1], [-1, 1]]
    assert (gaussian.images, gaussian.positions) == (1, 2)
    assert gaussian.std.tolist() == [1, 2]


@pytest.mark.parametrize("size", [1, 3, 10])
def test_covariance_for_any_batches_and_far_from_zero(size):
    near = torch.randn(10, 3, 4, 4, dtype=torch.float64, generator=torch.manual_seed(0))
    expected = torch.from_numpy(np.cov(near.transpose(0, 1).flatten(1).numpy(), bias=True))
    gaussian = fit_gaussian((near + 1e6).split(size))
    torch.testing.assert_close(gaussian.covariance, expected, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(gaussian.mean - 1e6, near.mean(dim=(0, 2, 3)), rtol=0, atol=1e-8)
    assert (gaussian.images, gaussian.positions) == (10, 160)


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


@pytest.mark.parametrize("function", [fit_gaussian, channel_correlations, channel_histograms])
def test_nothing_and_other_channels_and_too_much_are_refused(function, monkeypatch):
    for nothing in ([], [torch.zeros(0, 2, 1, 1)]):
        with pytest.raises(ValueError, match="no latents"):
            function(nothing)
    with pytest.raises(ValueError, match="latents of 3 channels follow latents of 2"):
        function([torch.zeros(1, 2, 1, 1), torch.zeros(1, 3, 1, 1)])
    monkeypatch.setattr(channels, "MOST_BYTES", 8 * 11)
    with pytest.raises(ValueError, match=r"more than .* GB of memory: .*--max-images"):
        function([torch.zeros(1, 2, 3, 1)] * 2)


def test_correlations_of_latents_made_by_hand():
    a, b = torch.randn(2, 50, 1, 16, 16, generator=torch.manual_seed(0), dtype=torch.float64)
    found = channel_correlations(torch.cat([a, 5 - 2 * a, 0.6 * a + 0.8 * b], dim=1).split(7))
    expected = torch.tensor([[1, -1, 0.6], [-1, 1, -0.6], [0.6, -0.6, 1]], dtype=torch.float64)
    torch.testing.assert_close(found.matrix, expected, rtol=0, atol=0.01)
    assert abs(found.largest - 1) < 1e-12
    assert found.positions == 50 * 256


def test_one_channel_is_correlated_with_nothing_else():
    found = channel_correlations(torch.randn(2, 1, 3, 3))
    assert found.matrix.tolist() == [[1]]
    assert found.largest == 0
    assert ink(found.figure().picture) > 1000


def test_numbers_are_finite_with_a_constant_channel():
    latents = torch.randn(2, 2, 3, 3)
    latents[:, 0] = 0
    numbers = channel_correlations(latents).numbers()
    assert numbers["matrix"] == [[1, 0], [0, 1]]
    assert numbers["constant"] == [0]


def test_every_value_is_counted_in_its_bin():
    values = torch.randn(20, 2, 8, 8, generator=torch.manual_seed(0), dtype=torch.float64)
    found = channel_histograms(values.split(3))
    assert found.values == 20 * 64
    for channel, histogram in enumerate(found.channels):
        own = values[:, channel].flatten()
        counts = torch.histogram(own, histogram.edges).hist
        assert torch.equal(counts.long(), histogram.counts)
        assert int(histogram.counts.sum()) == 20 * 64
        assert histogram.mean == pytest.approx(own.mean().item(), abs=1e-12)
        assert histogram.std == pytest.approx(own.std(correction=0).item(), rel=1e-12)
        assert 4 <= histogram.std / (histogram.edges[1] - histogram.edges[0]).item() < 8.001


def test_histograms_are_the_same_for_any_batches():
    values = torch.randn(12, 1, 4, 4, generator=torch.manual_seed(0)) * torch.logspace(-3, 3, 12).view(
        -1, 1, 1, 1
    )
    whole, parts = (channel_histograms(values.split(size)).channels[0] for size in (12, 1))
    assert torch.equal(whole.edges, parts.edges)
    assert torch.equal(whole.counts, parts.counts)


def test_a_far_value_after_many_near_ones_is_counted_too():
    near = torch.randn(1, 1, 64, 64, generator=torch.manual_seed(0), dtype=torch.float64)
    for far in (1000.0, 1e9):
        (histogram,) = channel_histograms([near, torch.full((1, 1, 1, 1), far)]).channels
        assert int(histogram.counts[-1]) == 1
        assert histogram.edges[-2] <= far < histogram.edges[-1]
        assert int(histogram.counts.sum()) == 64 * 64 + 1
        assert len(histogram.counts) <= 4096


@pytest.mark.parametrize("value", [0.0, 0.7, -3e8, 1e-30])
def test_a_constant_far_or_near_zero_has_one_bin(value):
    (histogram,) = channel_histograms(torch.full((3, 1, 4, 4), value, dtype=torch.float64)).channels
    assert histogram.counts.tolist() == [48]
    assert histogram.edges[0] <= value < histogram.edges[1]
    assert histogram.constant


def test_a_constant_channel_is_said_to_be_one():
    values = torch.randn(4, 2, 4, 4)
    values[:, 1] = 3.25
    found = channel_histograms(values)
    assert [channel.constant for channel in found.channels] == [False, True]
    assert found.channels[1].counts.tolist() == [64]
    assert found.channels[1].kurtosis == 0
    assert ink(found.figure().picture) > 1000


def test_the_figure_says_how_many_channels_it_leaves_out():
    found = channel_histograms(torch.randn(2, 20, 4, 4))
    assert "the first 16 of 20" in found.figure().title
    assert found.figure(20).title == "Values of the latent channels"


def test_noise_is_normal_and_a_function_of_seed_and_row():
    noise = normal_noise(40, (2, 16, 16), seed=1)
    assert noise.dtype == torch.float64
    assert noise.std().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(normal_noise(3, (2, 16, 16), seed=1), noise[:3])
    assert normal_noise(0, (2, 3, 3), seed=1).shape == (0, 2, 3, 3)


def test_rounding_is_no_variation():
    mean, std = torch.tensor([100.0, 0.0, 0.0, 100.0]), torch.tensor([1e-5, 0.0, 1e-8, 1e-3])
    assert constant_channels(mean, std) == [0, 1]
    assert constant_channels(mean[1:], std[1:] * torch.tensor([1.0, 1.0, 100.0])) == [0, 1]  # beside 0.1
    assert constant_channels(torch.zeros(2), torch.zeros(2)) == [0, 1]
