"""Caches and measured statistics of a FLUX.2 VAE."""

import pytest
import torch

from latentae import LatentDataset, load_autoencoder
from latentae.data import CenterCrop
from latentae.latents.cache import encode_dataset
from latentae.latents.inspection.decoding import sample_prior
from latentae.latents.recalibrate import recalibrate
from tests.data.pictures import ListSource
from tests.models.test_flux2 import make_flux2


@torch.no_grad()
@pytest.mark.parametrize("size", [16, 14])
def test_a_cache_gives_what_to_latents_gives(tmp_path, size):
    model = make_flux2()
    encode_dataset(model, ListSource(5), tmp_path / "out", image_size=size, dtype="float32", flips=True)
    dataset = LatentDataset(tmp_path / "out", model, sample=False, flip=False)
    images = torch.stack([CenterCrop(size)(ListSource(5).load(index, 3)) for index in range(5)])
    assert dataset.latent_shape == (16, 4, 4)
    assert set(dataset.shapes) == {(16, 4, 4)}
    latents = torch.stack([item["latents"] for item in dataset])
    torch.testing.assert_close(latents, model.to_latents(images), atol=1e-5, rtol=0)
    raw = LatentDataset(tmp_path / "out", sample=False, flip=False, normalised=False)
    assert raw.latent_shape == (4, 8, 8)
    # Samples differ from the mode by the posterior's noise, and other statistics are refused.
    assert LatentDataset(tmp_path / "out", model)[0]["latents"].shape == (16, 4, 4)
    model.set_statistics(torch.zeros(16), torch.ones(16))
    with pytest.raises(ValueError, match="another scale or shift"):
        LatentDataset(tmp_path / "out", model)


def test_stats_measures_and_writes_the_statistics(tmp_path, picture_folder):
    model, said = make_flux2(), []
    model.save_pretrained(tmp_path / "model")
    recalibrate(
        str(tmp_path / "model"),
        data=str(picture_folder),
        image_size=8,
        max_images=64,
        out=tmp_path / "out",
        say=said.append,
    )
    opened = load_autoencoder(tmp_path / "out")
    assert not torch.equal(opened.bn.running_mean, model.bn.running_mean)
    assert torch.equal(opened.encoder.conv_in.weight, model.encoder.conv_in.weight)
    assert "bn.running_mean and bn.running_var of 16 channels" in "".join(said)


def test_noise_is_decoded_as_a_denoiser_sees_it():
    model = make_flux2()
    images = sample_prior(model, 1, (4, 8, 8), size=(16, 16)).images
    assert images.keys() == {"N(0, I)", "N(0, I), scaled"}
    assert images["N(0, I), scaled"].shape == (1, 3, 16, 16)
    assert sample_prior(model, 1, (4, 7, 8)).images.keys() == {"N(0, I)"}
