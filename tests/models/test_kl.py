import inspect
import json

import pytest
import torch
from diffusers import AutoencoderKL

from latentae import KLVAE
from latentae.models import AutoencoderOutput
from tests.models.conftest import make


@pytest.fixture
def model():
    torch.manual_seed(0)
    return make(KLVAE)


def test_it_computes_what_the_stock_class_computes(model, images, tmp_path):
    model.to_diffusers().save_pretrained(tmp_path)
    stock = AutoencoderKL.from_pretrained(tmp_path)
    assert type(stock) is AutoencoderKL
    ours, theirs = model.encode(images).latent_dist, stock.encode(images).latent_dist
    assert torch.equal(ours.mean, theirs.mean)
    assert torch.equal(ours.logvar, theirs.logvar)
    assert torch.equal(model(images).sample, stock(images).sample)
    assert KLVAE.from_pretrained(tmp_path).config.latent_channels == 4


def test_every_argument_of_the_stock_class_is_repeated():
    # one that is not would be saved, then ignored when the model is loaded again
    own, stock = (list(inspect.signature(cls.__init__).parameters) for cls in (KLVAE, AutoencoderKL))
    assert own[: len(stock)] == stock
    assert own[len(stock) :] == ["decoder_block_out_channels", "decoder_layers_per_block", "upscale"]


def test_a_stock_folder_keeps_its_meaning(model, tmp_path):
    # as configs of the first releases are: without what was added later
    model.to_diffusers().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("scaling_factor", "shift_factor", "force_upcast", "use_quant_conv"):
        del config[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours, stock = (cls.from_pretrained(tmp_path) for cls in (KLVAE, AutoencoderKL))
    assert ours.config.scaling_factor == stock.config.scaling_factor == 0.18215
    assert ours.config.force_upcast
    assert ours.config.shift_factor == 0.0
    assert make(KLVAE, shift_factor=None).config.shift_factor == 0.0
    assert make(KLVAE).config.scaling_factor == 1.0


def test_forward_decodes_the_mode_or_a_sample(model, images):
    posterior = model.encode(images).latent_dist
    output = model(images)
    assert isinstance(output, AutoencoderOutput)
    assert torch.equal(output.sample, model.decode(posterior.mode()).sample)
    assert torch.equal(output.mean, posterior.mean)
    assert torch.equal(output.log_variance, posterior.logvar)
    drawn = [model(images, True, generator=torch.Generator().manual_seed(s)).latents for s in (3, 3, 4)]
    assert torch.equal(drawn[0], posterior.sample(torch.Generator().manual_seed(3)))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_noise_takes_the_place_of_the_generator(model, images):
    posterior = model.encode(images).latent_dist
    noise = torch.randn(2, 4, 8, 12)
    torch.testing.assert_close(model(images, noise=noise).latents, posterior.mean + posterior.std * noise)


def test_outputs_by_position_are_those_of_the_stock_class(model, images):
    posterior = model.encode(images)[0]
    assert torch.equal(posterior.mode(), model.encode(images, return_dict=False)[0].mode())
    assert torch.equal(posterior.mode(), model.encode(images).latents)
    assert torch.equal(model(images)[0], model(images, return_dict=False)[0])


@pytest.mark.parametrize("size", [(16, 24), (17, 23), (2, 3)])
def test_reconstruction_has_the_size_of_the_image(model, size):
    images = torch.rand(1, 3, *size)
    assert model(images).sample.shape == images.shape
    assert model.decode(model.encode(images).latents, size=size).sample.shape == images.shape


def test_without_quant_convs(images):
    model = make(KLVAE, use_quant_conv=False, use_post_quant_conv=False, latent_channels=16)
    assert model.encode(images).latents.shape == (2, 16, 8, 12)
    assert model(images).sample.shape == images.shape
    assert not any("quant_conv" in name for name in model.state_dict())
    assert torch.equal(model.to_diffusers()(images).sample, model(images).sample)


def test_training_reaches_every_parameter(model, images):
    output = model.train()(images, noise=torch.randn(2, 4, 8, 12))
    (output.sample.square().mean() + output.log_variance.square().mean()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
