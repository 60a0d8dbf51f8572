import pytest
import torch

from latentae.probe.denoiser import DenoiserSize, build_denoiser
from latentae.probe.pipeline import build_pipeline, pipeline_autoencoder
from latentae.probe.sampling import decode_latents, images_of_noise, picture_noise, sample_images
from tests.probe.conftest import tiny_model


@pytest.fixture(scope="module")
def pipeline():
    denoiser = build_denoiser((4, 8, 8), 4, DenoiserSize(32, 1), 0)
    with torch.no_grad():
        denoiser.proj_out_2.weight.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    return build_pipeline(denoiser, pipeline_autoencoder(tiny_model()).vae)


def difference(first, second):
    return (first.int() - second.int()).abs().max().item()


def test_a_picture_is_a_function_of_seed_number_and_label(pipeline):
    labels = [0, 1, 2, 0, 1]
    whole = torch.cat(list(sample_images(pipeline, labels, seed=3, steps=2)))
    parts = list(sample_images(pipeline, labels, seed=3, steps=2, batch_size=2))
    assert [len(part) for part in parts] == [2, 2, 1]
    assert difference(torch.cat(parts), whole) <= 1
    assert (whole.shape, whole.dtype) == ((5, 3, 32, 32), torch.uint8)
    other = torch.cat(list(sample_images(pipeline, labels, seed=4, steps=2)))
    assert difference(whole, other) > 10


def test_noise_that_is_given_comes_out_as_from_the_pipeline(pipeline):
    labels = [0, 1, 2]
    expected = torch.cat(list(sample_images(pipeline, labels, seed=3, steps=4)))
    noise = torch.stack([picture_noise(pipeline, 3, number) for number in range(3)])
    assert torch.equal(images_of_noise(pipeline, noise, labels, steps=4), expected)


def test_decoded_by_the_scale(pipeline):
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = pipeline.vae.decode(latents / 0.8).sample.clamp(-1, 1)
    assert torch.equal(decode_latents(pipeline, latents), ((expected + 1) * 127.5).round().to(torch.uint8))
