import itertools
import math

import numpy as np
import pytest
import torch

from latentae.data import FolderSource, ImageDataset, RandomCrop
from latentae.data.loader import epoch_order
from latentae.latents.statistics import (
    LatentStatistics,
    Views,
    measure_latents,
    merge_over_ranks,
    noise_generators,
    view_loader,
)
from tests.latents.conftest import batches_of, draw_tensors, make_kl, make_vq


def assert_close(one, other, tolerance):
    torch.testing.assert_close(one.mean, other.mean, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(one.std, other.std, rtol=tolerance, atol=0)


def test_the_numbers_are_those_of_the_samples():
    model, images = make_kl(), draw_tensors(7)
    statistics = measure_latents(model, batches_of(images, 3), seed=4)
    with torch.no_grad():
        samples = model.encode(images).latent_dist.sample(noise_generators(4, torch.arange(7)))
    flat = samples.double().transpose(0, 1).flatten(1)
    assert (statistics.images, statistics.positions) == (7, 7 * 64)
    torch.testing.assert_close(statistics.mean, flat.mean(dim=1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(statistics.std, flat.std(dim=1, correction=0), rtol=1e-5, atol=0)
    assert not statistics.mean.requires_grad


def test_batches_and_their_order_do_not_matter():
    model, images = make_kl(), draw_tensors(9)
    one = measure_latents(model, batches_of(images, 1), seed=1)
    assert_close(measure_latents(model, batches_of(images, 4), seed=1), one, 1e-6)
    assert_close(measure_latents(model, batches_of(images, 4)[::-1], seed=1), one, 1e-6)
    other = measure_latents(model, batches_of(images, 4), seed=2)
    assert not torch.allclose(other.mean, one.mean, rtol=1e-4)


def test_the_noise_of_the_posterior_is_in_it():
    model = make_kl()
    with torch.no_grad():  # every posterior is N(2, 9), whatever the image
        model.quant_conv.weight.zero_()
        model.quant_conv.bias.copy_(torch.tensor([2.0] * 4 + [2 * math.log(3)] * 4))
    statistics = measure_latents(model, batches_of(draw_tensors(100), 20))
    error = 1 / math.sqrt(2 * 100 * 4 * 64)  # relative standard error for independent normal values
    assert statistics.global_std == pytest.approx(3, rel=4 * error)
    assert statistics.global_mean == pytest.approx(2, abs=4 * 3 / math.sqrt(100 * 4 * 64))


def test_vq_latents_are_those_before_quantization():
    model, images = make_vq(), draw_tensors(6)
    statistics = measure_latents(model, batches_of(images, 4))
    with torch.no_grad():
        flat = model.encode(images).latents.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(statistics.mean, flat.mean(dim=1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(statistics.std, flat.std(dim=1, correction=0), rtol=1e-5, atol=0)


def test_scaled_measures_to_latents():
    model, images = make_kl(scaling_factor=0.5, shift_factor=-2.0), draw_tensors(6)
    raw, scaled = (measure_latents(model, batches_of(images, 4), scaled=scaled) for scaled in (False, True))
    torch.testing.assert_close(scaled.mean, (raw.mean + 2) * 0.5, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scaled.std, raw.std * 0.5, rtol=1e-5, atol=0)


def test_noise_is_a_function_of_seed_and_index():
    def draw(seed, index):
        (generator,) = noise_generators(seed, torch.tensor([index]))
        return torch.randn(4, generator=generator).tolist()

    assert draw(1, 7) == draw(1, 7)
    pairs = [(0, 0), (0, 1), (1, 0), (1, 1), (2**32, 0), (0, 2**32)]
    assert len({tuple(draw(*pair)) for pair in pairs}) == len(pairs)


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="no images"):
        measure_latents(make_kl(), [])


def test_latents_that_are_not_finite_are_refused():
    model = make_kl()
    with torch.no_grad():
        model.quant_conv.bias[0] = float("inf")
    with pytest.raises(ValueError, match=r"torch\.float32 are not finite"):
        measure_latents(model, batches_of(draw_tensors(2), 2))


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
    for name in ("mean", "squares", "between"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=tolerance, atol=1e-9)


def test_by_hand():
    # Two images of one channel and two positions, 4 and 6, 2 and 8: mean 5, squared deviations 1 and 9.
    statistics = LatentStatistics.of(torch.tensor([[[[4.0, 6.0]]], [[[2.0, 8.0]]]]))
    assert (statistics.images, statistics.positions) == (2, 4)
    assert statistics.mean.tolist() == [5.0]
    assert statistics.variance.tolist() == [5.0]
    assert statistics.global_mean == 5.0
    assert statistics.global_std == statistics.centred_std == pytest.approx(5**0.5)
    assert statistics.std_between_images.tolist() == [0.0]  # both images have the mean 5


def test_by_hand_with_two_channels():
    # Channel means 1 and 5, variances 1 and 9: 5 around the means, and 5 + 4 around the mean of all, 3.
    statistics = LatentStatistics.of(torch.tensor([[[[0.0, 2.0]], [[2.0, 8.0]]]]))
    assert statistics.mean.tolist() == [1.0, 5.0]
    assert statistics.std.tolist() == [1.0, 3.0]
    assert statistics.centred_std == pytest.approx(5**0.5)
    assert statistics.global_mean == 3.0
    assert statistics.global_std == pytest.approx(3.0)


def test_images_means_by_hand():
    # Two images of one channel: means 4 and 6 of two positions each, then a mean of 8 of one position.
    # The mean of all is 28 / 5 = 5.6, so the sum is 2 · 1.6² + 2 · 0.4² + 1 · 2.4² = 11.2.
    pair = LatentStatistics.of(torch.tensor([[[[3.0, 5.0]]], [[[6.0, 6.0]]]]))
    assert pair.between.tolist() == [4.0]
    statistics = pair.merge(LatentStatistics.of(torch.tensor([[[[8.0]]]])))
    assert statistics.between.tolist() == [pytest.approx(11.2)]
    assert statistics.std_between_images.tolist() == [pytest.approx((11.2 / 5) ** 0.5)]


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
    deviations = [image.numpy()[0] - flat.mean(axis=1)[0] for image in [*large, *small]]
    expected = sum(values.size * values.mean() ** 2 for values in deviations)
    assert statistics.between[0].item() == pytest.approx(expected, rel=1e-9)


def test_a_mean_far_from_zero_costs_no_digits():
    values = latents(50)
    near, far = merged(values.split(7)), merged((values + 1e8).split(7))  # an ulp of 1e8 is 1.5e-8
    torch.testing.assert_close(far.std, near.std, rtol=1e-8, atol=0)
    assert far.centred_std == pytest.approx(near.centred_std, rel=1e-8)
    torch.testing.assert_close(far.std_between_images, near.std_between_images, rtol=1e-6, atol=0)


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


@pytest.fixture
def dataset(picture_folder):
    return ImageDataset(FolderSource(picture_folder), RandomCrop(8, downscale=(1, 1)), channels=3, seed=5)


def indices(loader):
    return [view for batch in loader for view in batch["indices"].tolist()]


def test_a_view_is_an_epoch_of_an_image(dataset):
    views = Views(dataset)
    assert views[3]["index"] == 3
    assert views[15]["index"] == 15
    assert torch.equal(views[3]["images"], dataset[0, 3]["images"])
    assert torch.equal(views[15]["images"], dataset[1, 3]["images"])
    assert not torch.equal(views[15]["images"], views[3]["images"])  # another crop


def test_one_epoch_has_every_image_once_in_the_training_order(dataset):
    seen = indices(view_loader(dataset, batch_size=5, seed=2))
    assert seen == epoch_order(12, 2, 0).tolist()
    assert sorted(seen) == list(range(12))
    assert seen != indices(view_loader(dataset, batch_size=5, seed=3))


def test_epochs_stay_whole(dataset):
    seen = indices(view_loader(dataset, batch_size=5, fewest_views=25))
    assert sorted(seen) == list(range(36))
    assert sorted(seen[:12]) == list(range(12))
    assert sorted(indices(view_loader(dataset, batch_size=5, fewest_views=24))) == list(range(24))


def test_ranks_share_them_out(dataset):
    shares = [
        indices(view_loader(dataset, batch_size=2, max_views=11, rank=rank, world_size=3))
        for rank in range(3)
    ]
    whole = indices(view_loader(dataset, batch_size=2, max_views=11))
    assert [len(share) for share in shares] == [4, 4, 3]
    assert shares[1] == whole[2:4] + whole[8:10]
    assert sorted(itertools.chain(*shares)) == sorted(whole)


def test_a_rank_can_be_left_without(dataset):
    assert indices(view_loader(dataset, batch_size=12, rank=1, world_size=2)) == []


@pytest.mark.parametrize("name", ["batch_size", "max_views"])
def test_nothing_at_a_time_is_refused(dataset, name):
    with pytest.raises(ValueError, match=f"{name} is 0, but must be at least 1"):
        view_loader(dataset, **{"batch_size": 1, name: 0})


def test_torch_is_left_as_it_was(dataset):
    before = torch.get_rng_state()
    indices(view_loader(dataset, batch_size=5))
    assert torch.equal(torch.get_rng_state(), before)
