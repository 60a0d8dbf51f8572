import json

import pytest
import torch

from latentae import KLVAE
from latentae.latents.inspection.sections import Inspected, all_sections, encoded_latents, measure
from tests.latents.conftest import SHAPE, batches_of, draw_tensors, make_kl
from tests.latents.inspection.conftest import make_quantized

ALL = ["histograms", "spectrum", "correlations", "interpolation", "samples", "traversal"]


def sections_of(model, images):
    measured = measure(model, batches_of(images, 4))
    return {part.name: part for part in all_sections(Inspected(model, measured, seed=0, batch_size=8))}


@pytest.mark.parametrize("channels", [1, 4, 16])
def test_any_number_of_latent_channels(channels):
    model = make_quantized(latent_channels=channels, num_vq_embeddings=8)
    parts = sections_of(model, draw_tensors(5))
    assert list(parts) == [*ALL, "codebook"]
    for part in parts.values():
        assert part.figure is not None, part.name
        json.dumps(part.numbers, allow_nan=False)
    assert len(parts["traversal"].numbers["channels"]) == channels


@pytest.mark.parametrize("bands", [1, 5])
def test_any_number_of_image_channels(bands):
    parts = sections_of(
        make_kl(in_channels=bands, out_channels=bands), draw_tensors(4)[:, :1].repeat(1, bands, 1, 1)
    )
    assert list(parts) == ALL
    assert parts["interpolation"].numbers["pairs"] == ["images 1 and 2", "images 3 and 4", "two noises"]
    assert any("nats per latent position" in remark for remark in parts["samples"].remarks)


def test_constant_images_and_channels_are_said_to_be_that():
    model = make_kl()
    with torch.no_grad():
        model.quant_conv.weight[[2, 6]] = 0
        model.quant_conv.bias[2], model.quant_conv.bias[6] = 5, -30
    parts = sections_of(model, torch.full((4, 3, 16, 16), 0.2))
    for name in ("histograms", "correlations", "traversal"):
        assert any("channel(s) 2 do not vary" in remark for remark in parts[name].remarks), name
    assert parts["spectrum"].remarks[0].startswith("images: constant in channel(s) 0, 1, 2")
    assert parts["samples"].numbers["kl_fitted_to_prior_nats_per_position"] is None
    json.dumps([part.numbers for part in parts.values()], allow_nan=False)


def test_what_cannot_be_shown_says_why():
    parts = sections_of(make_kl(), draw_tensors(3, size=6))
    assert parts["spectrum"].figure is None
    assert parts["spectrum"].remarks == (
        "latents of 3x3 are too small for a spectrum: take a larger --image-size",
    )


def test_opposite_latents_are_left_out_with_a_remark():
    torch.manual_seed(0)
    model = KLVAE(**{**SHAPE, "latent_channels": 1}).eval()
    model.pin_posterior()
    images = draw_tensors(2, size=2)  # each becomes one number: they lie on opposite sides of their mean
    parts = sections_of(model, images)
    shown = parts["interpolation"].numbers.get("pairs", [])
    left_out = [remark.split(":")[0] for remark in parts["interpolation"].remarks]
    assert sorted(shown + left_out) == ["images 1 and 2", "two noises"]
    assert "images 1 and 2" in left_out


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


@pytest.mark.parametrize("name", ["kl", "vq"])
def test_measurements_are_the_same_for_any_batches(name, request):
    model, images = request.getfixturevalue(name), draw_tensors(7)
    one, other = (measure(model, batches_of(images, size), seed=1) for size in (1, 4))
    assert one.images == other.images == 7
    torch.testing.assert_close(one.gaussian.covariance, other.gaussian.covariance, rtol=1e-4, atol=1e-5)
    for name, spectrum in one.spectra.items():
        torch.testing.assert_close(spectrum.power, other.spectra[name].power, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(one.kept, images[:4])
    torch.testing.assert_close(other.kept, images[:4])
    if name == "vq":
        assert torch.equal(one.counts, other.counts)


def test_images_are_averaged_down_to_the_size_of_latents(kl):
    images = draw_tensors(3)
    spectra = measure(kl, batches_of(images, 2)).spectra
    small = torch.nn.functional.avg_pool2d(images.double(), 2)
    assert list(spectra) == ["images", "images, averaged down", "latents"]
    assert len(spectra["images, averaged down"].frequency) == 4
    variance = (small - small.mean(dim=(2, 3), keepdim=True)).square().mean().item()
    assert spectra["images, averaged down"].power.mean().item() == pytest.approx(variance, rel=0.35)


def test_counts_are_those_of_all_tables():
    quantizer = {"type": "residual", "depth": 2, "member": {"type": "vector"}}
    model = make_quantized(num_vq_embeddings=8, quantizer=quantizer)
    counts = measure(model, batches_of(draw_tensors(3), 2)).counts
    assert counts.shape == (2, 8)
    assert counts.sum(dim=1).tolist() == [3 * 64, 3 * 64]


def test_latents_too_small_for_a_spectrum_have_none(kl):
    measured = measure(kl, batches_of(draw_tensors(3, size=6), 2))
    assert measured.spectra == {}
    assert measured.counts is None
    assert measured.gaussian.positions == 27


def test_no_images_are_refused(kl):
    with pytest.raises(ValueError, match="no latents"):
        measure(kl, [])


def test_hidden_colours_are_not_averaged_into_visible_ones():
    images = torch.rand(3, 4, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    images[:, 3] = torch.where(images[:, 3] < 0, -1.0, 1.0)
    other = torch.where(images[:, 3:] < 0, -images, images)
    other[:, 3] = images[:, 3]
    name, model = "images, averaged down", make_kl(in_channels=4)
    for alpha in (True, False):
        spectra = [measure(model, batches_of(x, 3), alpha=alpha).spectra[name].power for x in (images, other)]
        assert torch.allclose(*spectra, rtol=1e-6) == alpha
