import numpy as np
import pytest
import torch

from latentae.latents.statistics import LatentStatistics, merge_over_ranks


def latents(count, channels=3, size=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, channels, size, size, generator=generator, dtype=torch.float64)
    return values * torch.arange(1, channels + 1)[:, None, None] + torch.arange(channels)[:, None, None]


def merged(parts):
    total = LatentStatistics.of(parts[0])
    for part in parts[1:]:
        total = total.merge(LatentStatistics.of(part))
    return total


def assert_same(one, other, tolerance=1e-12):
    assert (one.images, one.positions) == (other.images, other.positions)
    for name in ("mean", "squares", "spread"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=tolerance, atol=1e-9)


def test_by_hand():
    # Two images of one channel and two positions, 4 and 6, 2 and 8: mean 5, squared deviations 1 and 9.
    statistics = LatentStatistics.of(torch.tensor([[[[4.0, 6.0]]], [[[2.0, 8.0]]]]))
    assert (statistics.images, statistics.positions) == (2, 4)
    assert statistics.mean.tolist() == [5.0]
    assert statistics.variance.tolist() == [5.0]
    assert statistics.global_mean == 5.0
    assert statistics.global_std == statistics.centred_std == pytest.approx(5**0.5)
    # Images' sums of squares less their shares of the variance: 2 − 10 and 18 − 10. √(2/1 · 128) / 4 = 4 is
    # the error of the variance 5; half of 4 / 5 that of the standard deviation.
    assert statistics.std_error.tolist() == [pytest.approx(0.4)]
    assert statistics.global_std_error == pytest.approx(0.4)


def test_by_hand_with_two_channels():
    # Channel means 1 and 5, variances 1 and 9: 5 around the means, and 5 + 4 around the mean of all, 3.
    statistics = LatentStatistics.of(torch.tensor([[[[0.0, 2.0]], [[2.0, 8.0]]]]))
    assert statistics.mean.tolist() == [1.0, 5.0]
    assert statistics.std.tolist() == [1.0, 3.0]
    assert statistics.centred_std == pytest.approx(5**0.5)
    assert statistics.global_mean == 3.0
    assert statistics.global_std == pytest.approx(3.0)
    assert statistics.std_error.tolist() == [float("inf")] * 2  # of one image no one knows
    assert statistics.global_std_error == float("inf")


@pytest.mark.parametrize("sizes", [[1] * 10, [7, 3], [2, 5, 3]])
def test_any_division_gives_what_numpy_gives(sizes):
    values = latents(10)
    statistics = merged(values.split(sizes))
    flat = values.numpy().transpose(1, 0, 2, 3).reshape(3, -1)
    np.testing.assert_allclose(statistics.mean.numpy(), flat.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(statistics.std.numpy(), flat.std(axis=1), rtol=1e-12)
    assert statistics.global_mean == pytest.approx(flat.mean(), rel=1e-12)
    assert statistics.global_std == pytest.approx(flat.std(), rel=1e-12)
    assert_same(statistics, LatentStatistics.of(values))


def test_images_of_different_sizes_count_by_their_positions():
    large, small = latents(4, size=6), latents(3, size=2, seed=1) * 2
    statistics = LatentStatistics.of(large).merge(LatentStatistics.of(small))
    flat = np.concatenate([x.numpy().transpose(1, 0, 2, 3).reshape(3, -1) for x in (large, small)], axis=1)
    np.testing.assert_allclose(statistics.std.numpy(), flat.std(axis=1), rtol=1e-12)
    # The ratio estimator's residuals e − σ² n, image by image.
    variances, means = flat.var(axis=1), flat.mean(axis=1)
    residuals = [
        ((image.numpy()[0] - means[0]) ** 2).sum() - variances[0] * image[0].numel()
        for image in [*large, *small]
    ]
    expected = np.sqrt(7 / 6 * np.square(residuals).sum()) / flat.shape[1] / variances[0] / 2
    assert statistics.std_error[0].item() == pytest.approx(expected, rel=1e-9)


def test_a_mean_far_from_zero_costs_no_digits():
    values = latents(50)
    near, far = merged(values.split(7)), merged((values + 1e8).split(7))  # an ulp of 1e8 is 1.5e-8
    torch.testing.assert_close(far.std, near.std, rtol=1e-8, atol=0)
    assert far.centred_std == pytest.approx(near.centred_std, rel=1e-8)
    torch.testing.assert_close(far.std_error, near.std_error, rtol=1e-6, atol=0)
    assert far.global_std_error == pytest.approx(near.global_std_error, rel=1e-6)


@pytest.mark.parametrize("correlated", [True, False])
def test_standard_error_is_how_much_the_std_scatters(correlated):
    generator = torch.Generator().manual_seed(0)
    runs, images = 400, 60
    values = torch.randn(runs, images, 2, 6, 6, generator=generator, dtype=torch.float64)
    if correlated:  # each image has a brightness and a contrast, the same for both channels
        look = torch.randn(runs, images, 2, 1, 1, 1, generator=generator, dtype=torch.float64)
        values = values * (1 + 0.3 * look[:, :, 0]) + look[:, :, 1]
    values += torch.tensor([4.0, -4.0])[:, None, None]  # which only matters for what goes around all channels
    every = [LatentStatistics.of(run) for run in values]
    claims = {
        "channel": ([s.std_error[0].item() for s in every], [s.std[0].item() for s in every]),
        "centred": ([s.global_std_error for s in every], [s.centred_std for s in every]),
    }
    for claimed, stds in claims.values():
        truth = np.std(stds) / np.mean(stds)
        assert np.mean(claimed) == pytest.approx(truth, rel=0.15)
    independent = 1 / np.sqrt(2 * images * 2 * 36)  # of normal values that had nothing to do with each other
    ratio = np.mean(claims["centred"][0]) / independent
    assert ratio > 4 if correlated else ratio == pytest.approx(1, rel=0.15)


def test_other_channels_are_refused():
    with pytest.raises(ValueError, match="3 and of 4 latent channels"):
        LatentStatistics.of(latents(1)).merge(LatentStatistics.of(latents(1, channels=4)))


def test_one_rank_merges_to_itself():
    own = LatentStatistics.of(latents(3))
    again = merge_over_ranks(own)
    assert_same(again, own, tolerance=0)
    assert merge_over_ranks(None) is None


def test_any_floating_type_is_taken_without_loss():
    half = latents(3).half()
    assert_same(LatentStatistics.of(half), LatentStatistics.of(half.double()), tolerance=0)
