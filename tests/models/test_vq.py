import inspect
import json

import pytest
import torch
from diffusers import VQModel

from latentae import VQGAN, load_autoencoder
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


def test_indices_that_cannot_be_decoded(model, images):
    assert model.encode_indices(images).dtype == torch.int64
    with pytest.raises(ValueError, match="indices run from 0 to 32"):
        model.decode_indices(torch.tensor([[[0, 32]]]))
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


QUANTIZERS = {
    "vector": {},
    "ema": {},
    "cosine": {},
    "simvq": {},
    "ibq": {},
    "fsq": {"levels": [8, 5, 5]},
    "lfq": {"bits": 6},
    "bsq": {"bits": 6},
    "residual": {"depth": 3, "member": {"type": "ema"}},
    "grouped": {"groups": 2, "member": {"type": "fsq", "levels": [3, 4, 5]}},
}
SIZES = {"fsq": (200, 3), "lfq": (64, 6), "bsq": (64, 6), "grouped": (60, 6)}  # others: as the model is told


def model_with(kind, **changes):
    torch.manual_seed(0)
    told = {} if kind in SIZES else {"num_vq_embeddings": 32}
    model = make(
        **{"num_vq_embeddings": 256, **told, "quantizer": {"type": kind, **QUANTIZERS[kind]}, **changes}
    )
    model.quantize.start(model.encode(torch.rand(2, 3, 16, 16) * 2 - 1).latents, torch.manual_seed(0))
    return model


@pytest.fixture(params=QUANTIZERS)
def kind(request):
    return request.param


def test_tokens_there_and_back(kind, images):
    model = model_with(kind)
    indices = model.encode_indices(images)
    assert indices.shape == (2, *model.indices_shape(16, 24))
    assert indices.max() < model.num_codes
    reconstruction = model(images).sample
    assert torch.equal(model.decode_indices(indices), reconstruction)
    latents = model.codes_to_latents(indices)
    assert latents.shape == (2, model.latents_channels, 8, 12)
    assert torch.equal(model.decode(latents, force_not_quantize=True).sample, reconstruction)
    assert torch.equal(model.decode(model.encode(images).latents).sample, reconstruction)


def test_sizes_are_the_quantizers(kind):
    model = model_with(kind)
    codes, code_dim = SIZES.get(kind, (32, 4))
    assert (model.num_codes, model.latents_channels) == (codes, code_dim)
    assert model.config.num_vq_embeddings == codes
    assert (model.config.vq_embed_dim or 4) == code_dim
    tables = {"residual": (3,), "grouped": (2,)}.get(kind, ())
    assert model.indices_shape(17, 32) == (*tables, 9, 16)


def test_a_saved_model_opens_again(kind, images, tmp_path):
    model = model_with(kind)
    model.save_pretrained(tmp_path)
    again = load_autoencoder(tmp_path)
    assert type(again.quantize) is type(model.quantize)
    assert torch.equal(again.encode_indices(images), model.encode_indices(images))
    assert torch.equal(again(images).sample, model(images).sample)
    assert again.config.num_vq_embeddings == model.config.num_vq_embeddings
    needs = json.loads((tmp_path / "config.json").read_text()).get("_requires")
    if model.fits_stock_class:
        assert needs is None
    else:
        why = f"diffusers' VQModel holds one table of codes, which quantizer {kind!r} is not"
        assert needs == f"latentae.load_autoencoder: {why}"
        assert again.config["_requires"] == needs


@pytest.mark.parametrize("kind", ["fsq", "cosine", "residual"])
def test_in_half_precision(kind, images):
    model = model_with(kind).bfloat16()
    images = images.bfloat16()
    indices = model.encode_indices(images)
    assert model.codes_to_latents(indices).dtype == torch.bfloat16
    assert torch.equal(model.decode_indices(indices), model(images).sample)


def test_the_first_tables_of_a_residual_quantizer(images):
    model = model_with("residual")
    indices = model.encode_indices(images)
    coarse = model.decode_indices(indices[:, :1])
    assert coarse.shape == images.shape
    assert not torch.equal(coarse, model.decode_indices(indices))


def test_indices_that_are_looked_up_by_pipelines(images):
    model = model_with("residual", lookup_from_codebook=True)
    indices = model.encode_indices(images)
    expected = model.decode_indices(indices)
    flat = model.decode(indices.flatten(1), force_not_quantize=True, shape=(2, 8, 12, 4)).sample
    assert torch.equal(flat, expected)
    assert torch.equal(model.decode(indices, force_not_quantize=True).sample, expected)


def test_damaged_weights_are_no_code_0(images):
    model = model_with("vector").train()
    model.quant_conv.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match="values of the latents are NaN or infinite"):
        model.encode_indices(images)
    assert model(images).commit_loss.isnan()  # in training the step is refused by this


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_vq_embeddings": 100}, "num_codes is 100, but the fsq quantizer's other arguments make it 200"),
        ({"vq_embed_dim": 4}, "code_dim is 4, but the fsq quantizer's other arguments make it 3"),
        ({"quantizer": {"type": "fsq", "levels": [8, 1]}}, r"levels are \[8, 1\]"),
        ({"quantizer": {"type": "pq"}}, "quantizer type is 'pq'"),
    ],
)
def test_quantizers_that_cannot_be_built(changes, message):
    with pytest.raises(ValueError, match=message):
        VQGAN(**{"quantizer": {"type": "fsq", "levels": [8, 5, 5]}, **changes})
