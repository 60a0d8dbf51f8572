import json

import pytest
import torch
from diffusers import AutoencoderTiny

from latentae.models import AutoencoderOutput, TinyAutoencoder


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return TinyAutoencoder(latent_channels=4).eval()


def test_any_size_through_the_common_interface(model):
    images = torch.rand(2, 3, 17, 30) * 2 - 1
    output = model(images)
    assert isinstance(output, AutoencoderOutput)
    assert output.sample.shape == images.shape
    assert output.latents.shape == (2, 4, 3, 4)
    assert torch.equal(model(images, return_dict=False)[0], output.sample)
    assert torch.equal(model.decode(model.encode(images).latents, size=(17, 30)).sample, output.sample)
    assert model.downsampling_factor == 8
    assert model.last_layer.out_channels == 3
    with pytest.raises(ValueError, match=r"\[B, 3, H, W\]"):
        model(torch.zeros(1, 1, 16, 16))


def test_its_latents_are_the_denoisers(model):
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    latents = model.encode(images).latents
    assert torch.equal(model.to_latents(images), latents)
    assert torch.equal(model.from_latents(latents), model.decode(latents).sample)


def test_as_the_stock_class_but_without_rounding_the_latents(model):
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    stock = model.to_diffusers()
    assert type(stock) is AutoencoderTiny
    assert not stock.training
    assert torch.equal(stock.decode(stock.encode(images).latents).sample, model(images).sample)
    assert not torch.equal(stock(images).sample, model(images).sample)


@pytest.mark.parametrize("layer", ["convolution 4 64", "conv 4", "block", "conv four 64", "relu 64 64 1"])
def test_layers_that_cannot_be_built(layer):
    with pytest.raises(ValueError, match=rf"'{layer}' is not a layer .* one of conv, .*block"):
        TinyAutoencoder(decoder_layers=["conv 4 64", layer, "conv 64 3"])


def test_the_latents_that_are_decoded_can_be_changed(model):
    images = torch.rand(1, 3, 17, 30) * 2 - 1
    output = model(images, noise=torch.ones(1, 4, 3, 4), change=lambda latents: latents[..., :2] * 0.5)
    latents = model.encode(images).latents
    assert torch.equal(output.latents, latents)
    assert torch.equal(output.sample, model.decode(latents[..., :2] * 0.5).sample)


def test_saved_as_the_stock_class(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["_class_name"] == "AutoencoderTiny"
    assert type(AutoencoderTiny.from_pretrained(tmp_path)) is AutoencoderTiny


@torch.no_grad()
def test_tiles_by_height_and_width():
    model = TinyAutoencoder(latent_channels=4).eval()
    images = torch.rand(1, 3, 32, 48) * 2 - 1
    whole = model.encode(images).latents
    model.enable_tiling(tile_sample_min_height=16, tile_sample_min_width=32, tile_sample_stride_width=24)
    tiles = model.encode(images).latents
    assert tiles.shape == whole.shape
    assert not torch.equal(tiles, whole)
    model.disable_tiling()
    assert torch.equal(model.tiled_encode(images), tiles)


def test_no_warning_of_what_the_constructor_derives(model, tmp_path, caplog):
    model.save_pretrained(tmp_path)
    assert "block_out_channels" in json.loads((tmp_path / "config.json").read_text())
    assert "block_out_channels" in TinyAutoencoder.from_pretrained(tmp_path).config
    assert "block_out_channels" not in caplog.text
