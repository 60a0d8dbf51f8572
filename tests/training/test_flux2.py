"""Runs that start from a FLUX.2 VAE."""

import json

import pytest
import torch
from diffusers import AutoencoderKLFlux2

from latentae import Flux2VAE, load_autoencoder
from latentae.config import ConfigError, load_config
from latentae.training.run_folder import describe_pretrained
from latentae.training.trainer import Trainer
from tests.models.test_flux2 import make_flux2
from tests.training.pretrained_models import WITHOUT_GAN


def fine_tuning_flux2(tiny, place, *overrides):
    """The config of a tiny run from the model at ``place``, whose class and widths are taken over."""
    arguments = ["--config", str(tiny.file), "model.class=Flux2VAE", "loss.kl.weight=0.01", *WITHOUT_GAN]
    arguments += [f"model.pretrained={place}", *overrides]
    return load_config("kl_vae", arguments, describe_pretrained)


@pytest.fixture
def place(tmp_path):
    model = make_flux2(
        block_out_channels=(8, 16), decoder_block_out_channels=(8, 8), norm_num_groups=8, batch_norm_eps=1e-3
    )
    model.save_pretrained(tmp_path / "flux2")
    return str(tmp_path / "flux2")


def test_the_statistics_are_measured_at_the_end(tiny, tmp_path, place):
    summary = Trainer(fine_tuning_flux2(tiny, place)).fit()
    assert json.loads((tmp_path / "run/model/config.json").read_text())["_class_name"] == "AutoencoderKLFlux2"
    after, before = load_autoencoder(tmp_path / "run"), load_autoencoder(place)
    assert type(after) is Flux2VAE
    assert (after.config.decoder_block_out_channels, after.config.batch_norm_eps) == ([8, 8], 1e-3)
    assert not torch.equal(after.bn.running_mean, before.bn.running_mean)
    assert not torch.equal(after.encoder.conv_in.weight, before.encoder.conv_in.weight)
    assert summary["scaling_factor"] is None
    assert summary["scale_source"] == "measured on the training images"
    AutoencoderKLFlux2.from_pretrained(tmp_path / "run/model")


def test_a_frozen_encoder_keeps_the_latents(tiny, tmp_path, place):
    trainer = Trainer(fine_tuning_flux2(tiny, place, "freeze_encoder=true"))
    trainer.fit()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(3)) * 2 - 1
    before, after = load_autoencoder(place), load_autoencoder(tmp_path / "run")
    with torch.no_grad():
        assert torch.equal(after.to_latents(images), before.to_latents(images))
    assert not torch.equal(after.decoder.conv_in.weight, before.decoder.conv_in.weight)


def test_a_resumed_run_equals_an_uninterrupted_one(tiny, tmp_path, place):
    shared = ["optimizer.schedule=constant"]
    Trainer(fine_tuning_flux2(tiny, place, *shared, f"output_dir={tmp_path}/whole")).fit()
    Trainer(fine_tuning_flux2(tiny, place, *shared, "max_steps=3")).fit()
    Trainer(fine_tuning_flux2(tiny, place, *shared)).fit()
    whole, resumed = load_autoencoder(tmp_path / "whole"), load_autoencoder(tmp_path / "run")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_what_contradicts_is_refused(tiny, place):
    with pytest.raises(ConfigError, match="decoder_block_out_channels"):
        fine_tuning_flux2(tiny, place, "model.decoder_block_out_channels=[8]")
    # Leaving the class out takes the pretrained model's only where nothing else is chosen.
    with pytest.raises(ValueError, match=r"model\.class=Flux2VAE"):
        Trainer(fine_tuning_flux2(tiny, place, "model.class=KLVAE"))
