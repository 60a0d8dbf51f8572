import json

import pytest
import torch

from latentae import VQGAN, load_autoencoder
from tests.models.conftest import make

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
