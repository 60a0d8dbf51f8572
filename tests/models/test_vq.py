import inspect
import json

import pytest
import torch
from diffusers import VQModel

from latentae import VQGAN
from latentae.models import AutoencoderOutput
from latentae.quantizers import LatentMap
from tests.models.conftest import make


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


def test_indices_of_another_shape(model):
    for shape in ((8, 12), (1, 1, 8, 12)):
        with pytest.raises(ValueError, match=r"indices are \[B, h, w\]; got"):
            model.decode_indices(torch.zeros(shape, dtype=torch.int64))


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
    for channels in (1, 13):
        model = make(in_channels=channels, out_channels=channels)
        images = torch.rand(1, channels, 16, 16)
        assert model(images).sample.shape == images.shape


def test_every_argument_of_the_stock_class_is_repeated():
    own, stock = (list(inspect.signature(cls.__init__).parameters) for cls in (VQGAN, VQModel))
    assert own[: len(stock)] == stock


def test_a_stock_folder_keeps_its_meaning(model, tmp_path):
    model.to_diffusers().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["scaling_factor"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert type(model).from_pretrained(tmp_path).config.scaling_factor == 0.18215


def test_a_spatial_decoder_is_the_stock_one(images):
    # diffusers' spatial normalisation always has 32 groups
    model = make(norm_type="spatial", vq_embed_dim=4, block_out_channels=(32, 32))
    stock = model.to_diffusers()
    assert stock.config.norm_type == "spatial"
    torch.testing.assert_close(stock(images).sample, model(images).sample, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_type": "layer"}, "norm_type is 'layer', but must be 'group' or 'spatial'"),
        ({"norm_type": "spatial", "vq_embed_dim": 8}, "vq_embed_dim is 8 and latent_channels is 4"),
    ],
)
def test_decoders_that_cannot_be_built(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_indices_that_are_looked_up(images):
    model = make(lookup_from_codebook=True)
    indices = model.encode_indices(images)
    expected = model.decode_indices(indices)
    assert torch.equal(model.decode(indices, force_not_quantize=True).sample, expected)
    flat = model.decode(indices.flatten(1), force_not_quantize=True, shape=(2, 8, 12, 4)).sample
    assert torch.equal(flat, expected)
    with pytest.raises(ValueError, match=r"indices are float32.*\.long\(\)"):
        model.decode(indices.float(), force_not_quantize=True)


def test_the_quantizer_answers_as_the_stock_one_does(model, images):
    latents = model.encode(images).latents
    ours, stock = model.quantize(latents), model.to_diffusers().quantize(latents)
    quantized, loss, (_, _, indices) = ours
    torch.testing.assert_close(quantized, stock[0])
    torch.testing.assert_close(loss, sum(ours.losses.values()))
    assert torch.equal(indices, stock[2][2])
    shape = (2, 8, 12, 4)
    entry = model.quantize.get_codebook_entry(indices, shape)
    assert torch.equal(entry, model.to_diffusers().quantize.get_codebook_entry(indices, shape))


def test_a_normalisation_that_the_stock_class_cannot_hold():
    with pytest.warns(UserWarning, match="keeps scaling_factor only"):
        make(shift_factor=0.5).to_diffusers()


def test_latents_that_are_moved(images):
    """z' = A z + b through the convolution, whose parameters stay the same objects."""
    torch.manual_seed(0)
    model = make(quantizer={"type": "fsq", "levels": [8, 5, 5]}, num_vq_embeddings=200)
    before, weight = model.encode(images).latents, model.quant_conv.weight
    matrix = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, -1.0, 3.0]], dtype=torch.float64)
    shift = torch.tensor([0.5, 0.0, -1.0], dtype=torch.float64)
    model.move_latents(LatentMap(matrix, shift))
    expected = torch.einsum("ij,bjhw->bihw", matrix.float(), before) + shift.float()[:, None, None]
    torch.testing.assert_close(model.encode(images).latents, expected)
    assert model.quant_conv.weight is weight


def test_a_started_model_uses_its_grid(images):
    torch.manual_seed(0)
    model = make(quantizer={"type": "fsq", "levels": [5, 5, 5]}, num_vq_embeddings=125)
    change = model.quantize.start(model.encode(images).latents, torch.Generator())
    before = model(images).indices.unique().numel()
    model.move_latents(change)
    latents = model.encode(images).latents.transpose(0, 1).flatten(1)
    torch.testing.assert_close(latents.mean(dim=1), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.cov(latents, correction=0), torch.eye(3), atol=1e-3, rtol=0)
    assert model(images).indices.unique().numel() > 3 * before
