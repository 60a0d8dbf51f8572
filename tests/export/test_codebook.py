import json

import pytest
import torch
from diffusers import VQModel

from latentae import load_autoencoder
from latentae.export import export_autoencoder
from latentae.export.codebook import write_out_codebook
from tests.export.conftest import make_kl, make_vq


@pytest.mark.parametrize("kind", ["vector", "ema", "cosine", "simvq"])
def test_the_stock_class_has_the_same_codes_to_the_last_bit(kind, images, tmp_path):
    model = make_vq(quantizer={"type": kind})
    report = export_autoencoder(model, tmp_path / "model", format="diffusers")
    stock = VQModel.from_pretrained(tmp_path / "model")
    assert json.loads((tmp_path / "model/config.json").read_text())["_class_name"] == "VQModel"
    latents = model.encode(images).latents
    assert torch.equal(stock.encode(images).latents, latents)
    indices = model.encode_indices(images)
    assert torch.equal(stock.quantize(latents)[2][2], indices.flatten())
    codes = model.codes_to_latents(indices)
    assert torch.equal(stock.quantize.get_codebook_entry(indices.flatten(), (2, 8, 12, 4)), codes)
    assert torch.equal(stock.decode(codes, force_not_quantize=True).sample, model.decode_indices(indices))
    written_out = (
        f"the codes of quantizer {kind!r} were written out as a plain codebook, with the same indices"
    )
    assert (written_out in report.remarks) == (kind in ("cosine", "simvq"))
    assert model.config.quantizer == {"type": kind}  # the source is as it was


@pytest.mark.parametrize("kind", ["cosine", "simvq"])
def test_a_single_file_has_them_too(kind, images, tmp_path):
    model = make_vq(quantizer={"type": kind})
    export_autoencoder(model, tmp_path / "model.safetensors", format="ldm")
    again = load_autoencoder(tmp_path / "model.safetensors")
    assert torch.equal(again.encode_indices(images), model.encode_indices(images))
    assert torch.equal(again.decode_indices(model.encode_indices(images)), model(images).sample)


def test_a_shift_that_cosine_codes_cannot_follow_is_folded_into_the_plain_ones(images, tmp_path):
    model = make_vq(quantizer={"type": "cosine"}, shift_factor=0.5)
    export_autoencoder(model, tmp_path / "model", format="diffusers")
    stock = VQModel.from_pretrained(tmp_path / "model")
    scaled = (model.encode(images).latents - 0.5) * 0.7
    torch.testing.assert_close(stock.encode(images).latents * stock.config.scaling_factor, scaled)
    torch.testing.assert_close(stock(images).sample, model(images).sample, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "quantizer",
    [
        {"type": "fsq", "levels": [8, 5, 5]},
        {"type": "lfq", "bits": 5},
        {"type": "bsq", "bits": 5},
        {"type": "residual", "depth": 2, "member": {"type": "vector"}},
        {"type": "grouped", "groups": 2, "member": {"type": "vector"}},
        {"type": "ibq"},
    ],
)
@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_what_holds_no_single_table_says_what_it_needs(quantizer, shift, tmp_path):
    model = make_vq(num_vq_embeddings=256, quantizer=quantizer, shift_factor=shift)
    with pytest.raises(
        ValueError, match=f"quantizer '{quantizer['type']}' is not.*latentae.load_autoencoder opens"
    ):
        export_autoencoder(model, tmp_path / "model", format="diffusers")
    with pytest.raises(ValueError, match=r"without a table of codes\. .*latentae\.load_autoencoder"):
        export_autoencoder(model, tmp_path / "model.safetensors", format="ldm")
    assert list(tmp_path.iterdir()) == []


def test_other_models_have_nothing_to_write_out():
    assert write_out_codebook(make_kl()) == []
    assert write_out_codebook(make_vq()) == []
