import pytest
import torch

from latentae import VQGAN
from tests.models.conftest import make


def test_latents_are_scaled_and_back(images):
    torch.manual_seed(0)
    model = make(VQGAN, scaling_factor=0.5, shift_factor=0.25)
    unscaled = model.encode(images).latents
    torch.testing.assert_close(model.to_latents(images), (unscaled - 0.25) * 0.5)
    torch.testing.assert_close(model.from_latents(model.to_latents(images)), model.decode(unscaled).sample)


def test_the_distribution_is_a_point(model, images):
    output = model.encode(images)
    assert torch.equal(output.latent_dist.mode(), output.latents)
    assert torch.equal(output.latent_dist.sample(torch.Generator()), output.latents)


def test_factor_and_last_layer(model):
    assert model.downsampling_factor == 2
    assert model.last_layer is model.decoder.conv_out


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 16, 16), r"\[B, 3, H, W\].*\[3, 16, 16\]"),
        (torch.zeros(1, 1, 16, 16), r"\[B, 3, H, W\].*\[1, 1, 16, 16\]"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "floating-point.*uint8"),
        (torch.zeros(1, 3, 1, 16), "1x16 pixels are smaller than one latent"),
    ],
)
def test_images_that_cannot_be_encoded(model, images, message):
    with pytest.raises(ValueError, match=message):
        model.encode(images)
