import pytest
import torch

from latentae.latents.inspection.encoding import encoded_latents, measure
from tests.latents.conftest import batches_of, draw_tensors
from tests.latents.inspection.conftest import make_quantized


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
