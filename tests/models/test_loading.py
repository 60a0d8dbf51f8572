import json

import pytest
import torch

from latentae import VQGAN, VQVAE, load_autoencoder


def test_our_own_folder(model, images, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = load_autoencoder(tmp_path)
    assert type(loaded) is type(model)
    assert not loaded.training
    assert torch.equal(loaded(images).sample, model(images).sample)
    assert dict(loaded.config)["num_vq_embeddings"] == 32


def test_a_stock_folder_opens_as_vqgan(model, images, tmp_path):
    model.to_diffusers().save_pretrained(tmp_path)
    loaded = load_autoencoder(tmp_path, torch_dtype=torch.float64)
    assert type(loaded) is VQGAN
    assert loaded.dtype == torch.float64
    torch.testing.assert_close(
        loaded(images.double()).sample.float(), model(images).sample, rtol=1e-4, atol=1e-5
    )


def test_nothing_there(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json"):
        load_autoencoder(tmp_path)


def test_a_model_of_another_kind(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(ValueError, match="describes a UNet2DModel"):
        load_autoencoder(tmp_path)


def test_classes_are_recorded_under_the_package():
    assert VQGAN.__module__ == VQVAE.__module__ == "latentae"
