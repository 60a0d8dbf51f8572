import numpy as np
import pytest
import torch

from latentae import load_autoencoder
from latentae.data.annotations import Annotations
from latentae.latents.cache.folder import read_index
from latentae.latents.cache.identity import check_model, data_hash, model_hash, normalisation_of
from tests.data.pictures import ListSource
from tests.latents.conftest import make_kl, make_vq


def changed(model, name):
    with torch.no_grad():
        model.get_parameter(name).view(-1)[0] += 1e-3
    return model


def test_a_hash_knows_the_encoder_and_not_the_decoder(tmp_path):
    own = model_hash(make_kl())
    make_kl().save_pretrained(tmp_path)
    assert model_hash(load_autoencoder(tmp_path)) == own
    assert model_hash(changed(make_kl(), "decoder.conv_out.weight")) == own
    assert model_hash(changed(make_kl(), "post_quant_conv.bias")) == own
    assert model_hash(make_kl(scaling_factor=0.3)) == own
    assert model_hash(changed(make_kl(), "encoder.conv_in.weight")) != own
    assert model_hash(changed(make_kl(), "quant_conv.bias")) != own
    assert model_hash(make_kl(norm_num_groups=2)) != own
    assert model_hash(make_kl().half()) != own


def test_the_codebook_counts_where_codes_are_stored():
    other = changed(make_vq(), "quantize.embedding.weight")
    assert model_hash(other) == model_hash(make_vq())
    assert model_hash(other, codes=True) != model_hash(make_vq(), codes=True)


def test_normalisation_a_channel():
    assert normalisation_of(make_kl(scaling_factor=0.5, shift_factor=2.0)) == {
        "shift": [2.0] * 4,
        "scale": [0.5] * 4,
    }
    mean, std = (1.0, 2.0, 3.0, 4.0), (1.0, 2.0, 4.0, 8.0)
    own = normalisation_of(make_kl(scaling_factor=0.5, latents_mean=mean, latents_std=std))
    assert own == {"shift": list(mean), "scale": [0.5, 0.25, 0.125, 0.0625]}
    assert normalisation_of(make_kl(scaling_factor=None)) is None


@pytest.mark.parametrize(
    "other",
    [
        (ListSource(4), Annotations(np.array([0, 1, 0]))),
        (ListSource(3, broken=(1,)), Annotations(np.array([0, 1, 0]))),
        (ListSource(3), Annotations(np.array([0, 1, 1]))),
        (ListSource(3), Annotations(np.array([0, 1, 0]), ["a", "b"])),
        (ListSource(3), Annotations()),
    ],
)
def test_a_hash_knows_images_and_labels(other):
    own = data_hash(ListSource(3), Annotations(np.array([0, 1, 0])), 3)
    assert data_hash(ListSource(3), Annotations(np.array([0, 1, 0])), 3) == own
    assert data_hash(*other, 3) != own


def test_a_model_and_what_became_of_it(cache, tmp_path):
    settings = read_index(cache).settings
    check_model(settings, make_kl(), cache)
    check_model(settings, changed(make_kl(), "decoder.conv_in.bias"), cache)
    make_kl().save_pretrained(tmp_path / "model")
    check_model(settings, tmp_path / "model", cache)
    with pytest.raises(
        ValueError, match=r"are of another model: of a model in memory \(KLVAE, hash .*encode the"
    ):
        check_model(settings, changed(make_kl(), "encoder.conv_in.bias"), cache)
    with pytest.raises(ValueError, match="this model at another scale or shift"):
        check_model(settings, make_kl(scaling_factor=0.2), cache)
    with pytest.raises(ValueError, match="model is a dict: give a path"):
        check_model(settings, {}, cache)
