import pytest
import torch
from diffusers import VQModel

from latentae.models import AutoencoderOutput


def test_forward_is_decode_of_encode(model, images):
    output = model(images)
    assert isinstance(output, AutoencoderOutput)
    torch.testing.assert_close(output.sample, model.decode(model.encode(images).latents).sample)
    torch.testing.assert_close(output.commit_loss, sum(output.losses.values()))
    assert output.indices.shape == (2, 8, 12)
    assert torch.equal(model(images, return_dict=False)[0], output.sample)


@pytest.mark.parametrize("size", [(16, 24), (17, 23), (2, 3)])
def test_reconstruction_has_the_size_of_the_image(model, size):
    images = torch.rand(1, 3, *size)
    assert model(images).sample.shape == images.shape
    assert model.decode(model.encode(images).latents, size=size).sample.shape == images.shape


def test_indices_round_trip(model, images):
    indices = model.encode_indices(images)
    assert indices.shape == (2, 8, 12)
    assert indices.dtype == torch.int64
    assert torch.equal(model.decode_indices(indices), model(images).sample)
    with pytest.raises(ValueError, match="indices run from 0 to 32"):
        model.decode_indices(torch.tensor([[[0, 32]]]))


def test_force_not_quantize(model, images):
    latents = model.encode(images).latents
    quantized = model.quantize(latents).quantized
    assert torch.equal(model.decode(quantized, force_not_quantize=True).sample, model.decode(latents).sample)
    assert not torch.equal(
        model.decode(latents, force_not_quantize=True).sample, model.decode(latents).sample
    )


def test_the_stock_class_reconstructs_the_same(model, images, tmp_path):
    model.to_diffusers().save_pretrained(tmp_path)
    stock = VQModel.from_pretrained(tmp_path)
    assert type(stock) is VQModel
    torch.testing.assert_close(stock(images).sample, model(images).sample, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(stock.encode(images).latents, model.encode(images).latents)


def test_training_reaches_every_parameter(model, images):
    output = model.train()(images)
    (output.sample.square().mean() + output.commit_loss).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_one_and_many_channels():
    from tests.models.conftest import make

    for channels in (1, 13):
        model = make(in_channels=channels, out_channels=channels)
        images = torch.rand(1, channels, 16, 16)
        assert model(images).sample.shape == images.shape


def test_norm_type_of_another_decoder():
    from tests.models.conftest import make

    with pytest.raises(ValueError, match="norm_type is 'spatial'"):
        make(norm_type="spatial")
