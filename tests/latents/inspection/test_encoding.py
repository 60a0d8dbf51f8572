import pytest
import torch

from latentae.latents.inspection.encoding import constant_channels, decoded, encoded_latents, normal_noise
from tests.latents.conftest import batches_of, draw_tensors


def test_posterior_samples_do_not_depend_on_batches(kl):
    images = draw_tensors(5)
    one, other = (torch.cat(list(encoded_latents(kl, batches_of(images, size), seed=3))) for size in (1, 4))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
    modes = torch.cat(list(encoded_latents(kl, batches_of(images, 5), sample=False)))
    with torch.no_grad():
        torch.testing.assert_close(modes, kl.encode(images).latents)
    assert (one - modes).abs().max() > 0.1
    assert not modes.requires_grad


def test_latents_that_are_not_finite_are_refused(kl):
    with torch.no_grad():
        kl.quant_conv.bias[0] = float("nan")
    with pytest.raises(ValueError, match=r"torch\.float32 are not finite"):
        list(encoded_latents(kl, batches_of(draw_tensors(1), 1)))


def test_decoding_undoes_the_scale_where_asked(kl):
    latents = torch.randn(3, 4, 8, 8, generator=torch.manual_seed(0))
    raw, scaled = decoded(kl, latents, size=(16, 13), batch_size=2), decoded(kl, latents * 0.5, scaled=True)
    assert raw.shape == (3, 3, 16, 13)
    torch.testing.assert_close(raw, scaled[..., :13], rtol=0, atol=1e-5)


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
