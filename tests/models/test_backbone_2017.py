import pytest
import torch

from latentae import VQVAE, load_autoencoder
from latentae.models.backbone_2017 import Decoder2017, Encoder2017, ResidualStack


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_papers_layers():
    encoder = Encoder2017(3, 64, block_out_channels=(64, 128, 128), layers_per_block=2)
    decoder = Decoder2017(64, 3, block_out_channels=(64, 128, 128), layers_per_block=2)
    assert encoder(torch.zeros(1, 3, 32, 32)).shape == (1, 64, 8, 8)
    assert decoder(torch.zeros(1, 64, 8, 8)).shape == (1, 3, 32, 32)
    block = (128 * 32 * 9 + 32) + (32 * 128 + 128)
    down = (3 * 64 * 16 + 64) + (64 * 128 * 16 + 128) + (128 * 128 * 9 + 128)
    assert parameters(encoder) == down + 2 * block + (128 * 64 + 64)
    up = (128 * 64 * 16 + 64) + (64 * 3 * 16 + 3)
    assert parameters(decoder) == (64 * 128 * 9 + 128) + 2 * block + up


def test_every_strided_convolution_halves_the_sides():
    widths = (8, 16, 24, 24)
    latents = Encoder2017(1, 5, block_out_channels=widths, layers_per_block=1)(torch.zeros(2, 1, 16, 24))
    assert latents.shape == (2, 5, 2, 3)
    images = Decoder2017(5, 1, block_out_channels=widths, layers_per_block=1)(latents)
    assert images.shape == (2, 1, 16, 24)


def test_a_residual_stack_of_zeros_is_a_relu():
    stack = ResidualStack(8, 3)
    for parameter in stack.parameters():
        torch.nn.init.zeros_(parameter)
    hidden = torch.randn(1, 8, 4, 4)
    assert torch.equal(stack(hidden), hidden.relu())


def test_a_vq_vae_with_it_keeps_to_the_interface(tmp_path):
    torch.manual_seed(0)
    model = VQVAE(
        backbone="2017",
        block_out_channels=(8, 16, 16),
        layers_per_block=2,
        latent_channels=6,
        num_vq_embeddings=32,
    ).eval()
    images = torch.rand(1, 3, 18, 20) * 2 - 1
    assert model.downsampling_factor == 4
    assert model(images).sample.shape == images.shape
    assert torch.equal(
        model.decode_indices(model.encode_indices(images), size=(18, 20)), model(images).sample
    )
    with pytest.raises(ValueError, match="VQModel cannot hold backbone '2017'"):
        model.to_diffusers()
    model.save_pretrained(tmp_path)
    assert torch.equal(load_autoencoder(tmp_path)(images).sample, model(images).sample)
    with pytest.raises(ValueError, match="backbone is '1998'"):
        VQVAE(backbone="1998")
