import pytest
import torch

from latentae.latents.inspection.channels import fit_gaussian, normal_noise
from latentae.latents.inspection.samples import LatentSamples, sample_gaussian, sample_prior
from tests.latents.conftest import draw_tensors


def test_the_rows_are_what_they_say(kl):
    with torch.no_grad():
        fitted = fit_gaussian(kl.encode(draw_tensors(6)).latents)
        found = sample_prior(kl, 3, (4, 8, 8), fitted=fitted, seed=2)
        noise = normal_noise(3, (4, 8, 8), seed=2).float()
        expected = kl.decode(noise).sample, kl.decode(noise / 0.5).sample
    assert list(found.images) == ["N(0, I)", "N(0, I), scaled", "fitted Gaussian"]
    torch.testing.assert_close(found.images["N(0, I)"], expected[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(found.images["N(0, I), scaled"], expected[1], rtol=0, atol=1e-5)
    assert found.figure().picture.shape[2] == 3


def test_the_same_for_any_number_and_batch(kl):
    one, other = sample_prior(kl, 2, (4, 8, 8), batch_size=1), sample_prior(kl, 4, (4, 8, 8), batch_size=4)
    torch.testing.assert_close(one.images["N(0, I)"], other.images["N(0, I)"][:2], rtol=0, atol=1e-5)


def test_without_a_scale_its_row_is_left_out(kl):
    kl.change_config(scaling_factor=None)
    assert list(sample_prior(kl, 1, (4, 8, 8)).images) == ["N(0, I)"]


def test_a_vq_model_has_no_prior_but_a_gaussian(vq):
    with pytest.raises(ValueError, match="a VQGAN has none: train a prior over its indices"):
        sample_prior(vq, 1, (4, 8, 8))
    with torch.no_grad():
        fitted = fit_gaussian(vq.encode(draw_tensors(4)).latents)
    images = sample_gaussian(vq, fitted, 2, (8, 8), size=(15, 16)).images["fitted Gaussian"]
    assert images.shape == (2, 3, 15, 16)


def test_what_is_clipped_is_counted():
    images = torch.tensor([0.5, 1.5, -2.0, 1.0]).view(1, 1, 2, 2)
    assert LatentSamples({"a": images}).numbers() == {"share_outside_of_range": {"a": 0.5}}


def test_no_samples_are_refused(kl):
    with pytest.raises(ValueError, match="count is 0"):
        sample_prior(kl, 0, (4, 8, 8))
