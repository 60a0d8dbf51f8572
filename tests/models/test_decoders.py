"""KL-VAEs whose decoder is not the mirror of their encoder."""

import json

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import nn

from latentae import KLVAE, load_autoencoder
from latentae.losses.compositing import composite
from latentae.models.card import model_card
from latentae.models.decoders import DecoderShape, downscale, reconstruct
from latentae.models.folding import fold_normalisation
from latentae.models.lean import make_lean
from tests.models.conftest import make

SHAPES = {
    "narrow": {"decoder_block_out_channels": (4, 8)},
    "deep": {"decoder_layers_per_block": 2},
    "x2": {"upscale": 2},
    "narrow x4": {"decoder_block_out_channels": (4, 8), "upscale": 4},
}


@pytest.fixture(params=SHAPES)
def model(request):
    torch.manual_seed(0)
    return make(KLVAE, **SHAPES[request.param])


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_what_changes_nothing_leaves_no_trace():
    torch.manual_seed(0)
    usual = make(KLVAE)
    torch.manual_seed(0)
    named = make(KLVAE, decoder_block_out_channels=[8, 16], decoder_layers_per_block=1, upscale=1)
    configs = [{**model.config, "_use_default_values": None} for model in (named, usual)]
    assert configs[0] == configs[1]
    unset = [set(model.config["_use_default_values"]) for model in (named, usual)]
    assert unset[0] == unset[1]
    assert not {"upscale", "decoder_layers_per_block"} & set(usual.config)
    assert json.loads(named.to_json_string()) == json.loads(usual.to_json_string())
    for name, value in usual.state_dict().items():
        assert torch.equal(named.state_dict()[name], value), name
    assert named.fits_stock_class
    assert type(named.to_diffusers()) is AutoencoderKL


def test_parameters_and_encoders():
    usual, narrow = make(KLVAE), make(KLVAE, **SHAPES["narrow"])
    assert count(narrow.encoder) == count(usual.encoder)
    # Convolutions between halved widths have a quarter of the weights.
    mid = narrow.decoder.mid_block.resnets[0].conv1, usual.decoder.mid_block.resnets[0].conv1
    assert mid[0].weight.numel() * 4 == mid[1].weight.numel() == 16 * 16 * 9
    assert narrow.decoder.conv_out.weight.shape == (3, 4, 3, 3)
    # One more residual block at each of two levels, of widths 16 and 8.
    deep = make(KLVAE, **SHAPES["deep"])
    blocks = sum(2 * (width * width * 9 + width) + 4 * width for width in (16, 8))
    assert count(deep) - count(usual) == blocks
    # Nine more outputs of 8 inputs.
    assert count(make(KLVAE, upscale=2)) - count(usual) == 9 * (8 * 9 + 1)


def test_a_pixel_shuffle_puts_channels_side_by_side():
    model = make(KLVAE, upscale=2)
    nn.init.zeros_(model.decoder.conv_out.weight)
    model.decoder.conv_out.bias.data = torch.arange(12.0)
    image = model.decode(torch.zeros(1, 4, 3, 5)).sample
    assert image.shape == (1, 3, 12, 20)
    for channel in range(3):
        expected = 4 * channel + torch.tensor([[0.0, 1.0], [2.0, 3.0]])
        assert torch.equal(image[0, channel], expected.repeat(6, 10))


@torch.no_grad()
def test_save_and_load(model, images, tmp_path):
    model.save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    assert config["_class_name"] == "KLVAE"
    assert "latentae.load_autoencoder" in config["_requires"]
    loaded = load_autoencoder(tmp_path / "model")
    assert DecoderShape.of(loaded.config) == DecoderShape.of(model.config)
    assert torch.equal(loaded(images).sample, model(images).sample)
    # The weights' file alone has the config in its metadata.
    (tmp_path / "model/diffusion_pytorch_model.safetensors").rename(tmp_path / "alone.safetensors")
    assert torch.equal(load_autoencoder(tmp_path / "alone.safetensors")(images).sample, model(images).sample)
    again = KLVAE.from_config(loaded.config)
    assert again.state_dict().keys() == model.state_dict().keys()


def test_a_stock_class_is_refused(model):
    with pytest.raises(ValueError, match=r"AutoencoderKL cannot hold a decoder.*save_pretrained keeps"):
        model.to_diffusers()


@torch.no_grad()
def test_sizes_tiles_and_slices(model):
    k = model.upscale
    images = torch.rand(2, 3, 33, 46, generator=torch.Generator().manual_seed(1)) * 2 - 1
    whole = model(images).sample
    assert whole.shape == (2, 3, 33 * k, 46 * k)
    latents = model.encode(images).latents
    assert torch.equal(model.decode(latents, size=(33, 46)).sample, whole)
    assert model.decode(latents).sample.shape[-2:] == (34 * k, 46 * k)
    assert torch.equal(model.from_latents(latents, size=(33, 46)), whole)
    model.enable_slicing()
    torch.testing.assert_close(model(images).sample, whole, atol=1e-5, rtol=1e-5)
    # Without what looks beyond a latent, tiles change nothing.
    model.disable_slicing()
    model._decode_whole = lambda z: F.interpolate(z[:, :3], scale_factor=2.0 * k, mode="nearest")
    whole = model.decode(latents).sample
    model.enable_tiling(tile_sample_min_size=16, tile_overlap_factor=0.25)
    torch.testing.assert_close(model.decode(latents).sample, whole)


def test_lean_blocks_compute_the_same(model, images):
    results = []
    for lean in (False, True):
        model.zero_grad()
        if lean:
            assert make_lean(model) > 0
        sample = model(images).sample
        sample.square().mean().backward()
        results.append([sample.detach(), *(p.grad.clone() for p in model.parameters())])
    for own, expected in zip(*results, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_another_scale_folds_into_the_weights(model, images):
    latents = model.encode(images).latents
    expected = model(images).sample
    fold_normalisation(model, torch.tensor([0.1, 0.2, -0.3, 0.0]), 2.0)
    torch.testing.assert_close(model(images).sample, expected, atol=1e-4, rtol=1e-4)
    moved = (latents - torch.tensor([0.1, 0.2, -0.3, 0.0])[:, None, None]) * 2
    torch.testing.assert_close(model.encode(images).latents, moved, atol=1e-5, rtol=1e-5)


def test_downscaling_takes_means():
    images = torch.arange(12.0).view(1, 1, 3, 4)
    # The last row is repeated.
    assert torch.equal(downscale(images, 2), torch.tensor([[[[2.5, 4.5], [8.5, 10.5]]]]))
    assert downscale(images, 1) is images
    assert torch.equal(downscale(F.interpolate(images, scale_factor=4.0, mode="nearest"), 4), images)


def test_hidden_colours_do_not_bleed_into_smaller_images():
    # Opaque 0.5, half visible -0.7, and hidden 1.0; then a block of which nothing is visible.
    colours = torch.tensor([[0.5, -0.7, 0.9, 0.9], [1.0, 1.0, 0.9, 0.9]])
    alpha = torch.tensor([[1.0, 0.0, -1.0, -1.0], [-1.0, -1.0, -1.0, -1.0]])
    images = torch.stack([colours, colours, -colours, alpha])[None]
    mean = (1 * 0.5 + 0.5 * -0.7) / 1.5
    expected = torch.tensor([[mean, -1.0], [mean, -1.0], [-mean, -1.0], [-0.25, -1.0]])[None, :, None]
    torch.testing.assert_close(downscale(images, 2, alpha=True), expected)
    bands = F.avg_pool2d(images, 2)
    assert torch.equal(downscale(images, 2), bands)
    opaque = torch.cat([images[:, :3], torch.ones_like(images[:, 3:])], dim=1)
    assert torch.equal(downscale(opaque, 2, alpha=True), F.avg_pool2d(opaque, 2))
    # A reconstruction's alpha may leave its range, where it is no weight.
    wild = torch.cat([images[:, :3], 3 * images[:, 3:]], dim=1)
    assert downscale(wild, 2, alpha=True)[0, 0, 0].tolist() == pytest.approx([mean, -1.0])
    # It is the image whose composites are the means of the composites, over any background.
    torch.manual_seed(0)
    images = torch.rand(2, 4, 6, 8, dtype=torch.float64) * 2 - 1
    small = downscale(images, 2, alpha=True)
    for background in (-1.0, 0.3):
        whole = F.avg_pool2d(composite(images, background), 2)
        torch.testing.assert_close(composite(small, background), whole, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match=r"\[2, 3, 6, 8\]: give RGBA images"):
        downscale(images[:, :3], 2, alpha=True)


@torch.no_grad()
def test_reconstructing_originals():
    model = make(KLVAE, upscale=2)
    images = torch.rand(2, 3, 33, 46) * 2 - 1
    sample = reconstruct(model, images).sample
    assert sample.shape == images.shape
    assert torch.equal(sample, model(downscale(images, 2)).sample[..., :33, :46])
    usual = make(KLVAE)
    assert torch.equal(reconstruct(usual, images).sample, usual(images).sample)
    rgba = make(KLVAE, upscale=2, in_channels=4, out_channels=4)
    images = torch.rand(2, 4, 32, 46) * 2 - 1
    expected = rgba(downscale(images, 2, alpha=True)).sample
    assert torch.equal(reconstruct(rgba, images, alpha=True).sample, expected)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"decoder_block_out_channels": (8,)}, r"width for each of the 2 levels"),
        ({"decoder_block_out_channels": (6, 8)}, r"norm_num_groups, 4, does not divide 6"),
        ({"decoder_layers_per_block": -1}, r"decoder_layers_per_block is -1"),
        ({"upscale": 3}, r"upscale is 3, but must be one of 1, 2, 4"),
    ],
)
def test_what_cannot_be(arguments, says):
    with pytest.raises(ValueError, match=says):
        make(KLVAE, **arguments)


def test_the_card_names_the_size():
    usual, larger = (model_card(make(KLVAE, upscale=upscale), "owner/name") for upscale in (1, 2))
    assert "2 times as large as the images" in larger
    assert "No diffusers class can hold its weights" in larger
    assert "times as large" not in usual
