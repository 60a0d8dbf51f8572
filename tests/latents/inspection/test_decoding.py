import pytest
import torch

from latentae.latents.inspection.channels import fit_gaussian, normal_noise
from latentae.latents.inspection.decoding import (
    Interpolation,
    LatentSamples,
    decode_latents,
    interpolate,
    sample_gaussian,
    sample_prior,
    traverse,
)
from tests.latents.conftest import draw_tensors


def test_ends_are_the_reconstructions(kl):
    images = draw_tensors(4)
    with torch.no_grad():
        latents, expected = kl.encode(images).latents, kl(images).sample
    centre = latents.mean(dim=(0, 2, 3))
    found = interpolate(kl, latents[:2], latents[2:], steps=5, centre=centre, size=(16, 16))
    assert found.images.shape == (2, 5, 3, 16, 16)
    torch.testing.assert_close(found.images[:, 0], expected[:2], rtol=0, atol=1e-5)
    torch.testing.assert_close(found.images[:, -1], expected[2:], rtol=0, atol=1e-5)
    moved = (latents[0].double() - centre[:, None, None]).norm()
    assert found.norms[0, 0].item() == pytest.approx(moved.item(), rel=1e-5)


def test_noises_decode_too_and_batches_do_not_matter(vq):
    noise = torch.randn(2, 1, 4, 8, 8, generator=torch.manual_seed(0))
    one, other = (interpolate(vq, *noise, steps=3, batch_size=size) for size in (1, 3))
    torch.testing.assert_close(one.images, other.images, rtol=0, atol=1e-5)
    both = Interpolation.join([one, other])
    assert both.images.shape == (2, 3, 3, 16, 16)
    assert both.angles.tolist() == one.angles.tolist() * 2
    assert both.numbers()["weights"] == [0, 0.5, 1]
    assert both.figure().picture.shape[2] == 3


def test_bad_arguments_of_interpolations_are_refused(kl):
    latents = torch.zeros(1, 4, 8, 8)
    with pytest.raises(ValueError, match="steps is 1"):
        interpolate(kl, latents, latents, steps=1)
    with pytest.raises(ValueError, match=r"must both be \[B, c, h, w\]"):
        interpolate(kl, latents[0], latents[0])


@pytest.fixture
def latents(kl):
    with torch.no_grad():
        return kl.encode(draw_tensors(1)).latents[0]


def test_each_row_moves_its_channel_alone(kl, latents):
    std = torch.tensor([1.0, 2.0, 0.5, 3.0])
    found = traverse(kl, latents, std, channels=[1, 3], reach=2, steps=5, size=(16, 16))
    assert found.offsets.tolist() == [-2, -1, 0, 1, 2]
    moved = latents.clone()
    moved[3] += 2 * 3.0
    with torch.no_grad():
        expected = kl.decode(moved[None]).sample[0]
    torch.testing.assert_close(found.images[1, 4], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.images[0, 2], found.images[1, 2], rtol=0, atol=1e-5)
    assert found.changes[:, 2].tolist() == [0, 0]
    change = (found.images[1, 4] - found.images[1, 2]).double().square().mean().sqrt().item()
    assert found.changes[1, 4].item() == pytest.approx(change, rel=1e-6)


def test_sensitivity_is_the_slope_of_a_decoder_that_is_linear(kl, latents):
    class Linear(type(kl)):
        def decode(self, z, size=None):
            return type("Output", (), {"sample": z[:, :3] * torch.tensor([2.0, 1.0, 0.0])[:, None, None]})

    kl.__class__ = Linear
    found = traverse(kl, latents, torch.tensor([1.0, 0.5, 1.0, 1.0]))
    # one of three channels changes by 2, or by half of 1: root mean square
    expected = [2 / 3**0.5, 0.5 / 3**0.5, 0, 0]
    assert found.sensitivity.tolist() == pytest.approx(expected, abs=1e-6)


def test_a_channel_that_does_not_vary_changes_nothing(kl, latents):
    found = traverse(kl, latents, torch.tensor([0.0, 1.0, 1.0, 1.0]), steps=3)
    assert found.changes[0].tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    assert found.sensitivity[1] > 0
    assert found.figure().picture.shape[2] == 3
    assert len(found.numbers()["pixel_change"]) == 4


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"steps": 4}, "steps is 4"),
        ({"reach": 0}, "reach is 0"),
        ({"channels": [4]}, r"channels are \[4\]"),
        ({"channels": []}, r"channels are \[\]"),
        ({"std": torch.ones(3)}, "3 standard deviations"),
    ],
)
def test_bad_arguments_of_traversals_are_refused(kl, latents, arguments, says):
    with pytest.raises(ValueError, match=says):
        traverse(kl, latents, **{"std": torch.ones(4), **arguments})


def test_decoding_undoes_the_scale_where_asked(kl):
    latents = torch.randn(3, 4, 8, 8, generator=torch.manual_seed(0))
    raw, scaled = (
        decode_latents(kl, latents, size=(16, 13), batch_size=2),
        decode_latents(kl, latents * 0.5, scaled=True),
    )
    assert raw.shape == (3, 3, 16, 13)
    torch.testing.assert_close(raw, scaled[..., :13], rtol=0, atol=1e-5)


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
