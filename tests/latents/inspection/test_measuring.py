import pytest
import torch

from latentae.latents.inspection.measuring import measure
from tests.latents.conftest import batches_of, draw_tensors
from tests.latents.inspection.conftest import make_quantized


@pytest.mark.parametrize("name", ["kl", "vq"])
def test_batches_do_not_matter(name, request):
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
