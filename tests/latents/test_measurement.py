import math

import pytest
import torch

from latentae.latents.measurement import measure_latents, noise_generators
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
    error = statistics.global_std_error
    assert error == pytest.approx(1 / math.sqrt(2 * 100 * 4 * 64), rel=0.2)  # independent normal values
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


def test_it_stops_when_the_std_is_known():
    model, images = make_kl(), draw_tensors(320, size=8)
    whole = measure_latents(model, batches_of(images, 32), relative_error=None)
    assert whole.images == 320
    rough = 2 * whole.global_std_error
    # 64 images would do, but the error of so few is itself not to be trusted.
    assert measure_latents(model, batches_of(images, 32), relative_error=rough).images == 256
    fine = whole.global_std_error / 2
    assert measure_latents(model, batches_of(images, 32), relative_error=fine).images == 320


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
