"""Runs that start from a FLUX.2 VAE."""

import json

import pytest
import torch
from diffusers import AutoencoderKLFlux2

from latentae import Flux2VAE, cli, load_autoencoder
from latentae.config import ConfigError, load_config
from latentae.training.run_folder import describe_pretrained
from latentae.training.trainer import Trainer
from tests.models.test_flux2 import make_flux2, same
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


def test_a_small_decoder_is_sliced_from_the_teacher(tiny, tmp_path):
    """Narrower than the model's own: it learns, resumes, and is a stock model for the same denoisers."""
    teacher = make_flux2(block_out_channels=(8, 16), norm_num_groups=4)
    teacher.save_pretrained(tmp_path / "teacher")
    words = ["freeze_encoder=true", "decoder={widths: [4, 8]}", "optimizer.schedule=constant", "max_steps=2"]
    words += ["checkpoint_every=1", "loss.teacher={output_weight: 0.5, features_weight: 0.1}"]
    config = fine_tuning_flux2(tiny, tmp_path / "teacher", *words)
    assert (config.decoder.widths, config.model.decoder_block_out_channels) == ((4, 8), None)
    trainer = Trainer(config)
    own = trainer.networks.autoencoder.decoder.conv_out.weight
    kept = teacher.decoder.conv_out.weight[:, [0, 2, 4, 6]]  # the first channel of each group of two
    assert torch.equal(own, kept)
    trainer.fit()
    model, stock = (
        load_autoencoder(tmp_path / "run"),
        AutoencoderKLFlux2.from_pretrained(tmp_path / "run/model"),
    )
    assert stock.config.decoder_block_out_channels == [4, 8]
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(3)) * 2 - 1
    with torch.no_grad():
        assert torch.equal(model.to_latents(images), teacher.to_latents(images))
        latents = model.encode(images).latents
        assert torch.equal(stock.decode(latents).sample, model.decode(latents).sample)
    assert not torch.equal(model.decoder.conv_out.weight, kept)
    # Interrupted and continued, it ends with the same weights.
    Trainer(
        fine_tuning_flux2(tiny, tmp_path / "teacher", *words, f"output_dir={tmp_path}/b", "max_steps=1")
    ).fit()
    Trainer(fine_tuning_flux2(tiny, tmp_path / "teacher", *words, f"output_dir={tmp_path}/b")).fit()
    assert same(load_autoencoder(tmp_path / "b"), model)
    # It is measured beside its teacher, and fine-tuned again as it is.
    words = [f"small={tmp_path}/run", "--teacher", f"whole={tmp_path}/teacher", "--limit", "4"]
    words += [
        "--data",
        str(tmp_path / "images"),
        "--protocol",
        "resize-32",
        "--out",
        str(tmp_path / "report"),
    ]
    assert cli.main(["evaluate", *words]) == 0
    results = json.loads((tmp_path / "report/results.json").read_text())
    assert results["protocol"]["teacher"]["name"] == "whole"
    again = fine_tuning_flux2(tiny, tmp_path / "run", "freeze_encoder=true", f"output_dir={tmp_path}/again")
    assert again.model.decoder_block_out_channels == (4, 8)
    assert again.decoder is None
    assert same(Trainer(again).networks.autoencoder, model)


def test_a_decoder_of_larger_images(tiny, tmp_path, place):
    words = ["freeze_encoder=true", "max_steps=1", "decoder={upscale: 2, layers_per_block: 2}"]
    Trainer(fine_tuning_flux2(tiny, place, *words)).fit()
    model = load_autoencoder(tmp_path / "run")
    assert type(model) is Flux2VAE
    assert model(torch.zeros(1, 3, 16, 16)).sample.shape == (1, 3, 32, 32)
    assert "AutoencoderKLFlux2 cannot hold" in model.stock_objection
    again = fine_tuning_flux2(tiny, tmp_path / "run", "freeze_encoder=true", f"output_dir={tmp_path}/again")
    assert again.decoder.model_dump() == {"widths": (8, 8), "layers_per_block": 2, "upscale": 2}
    assert same(Trainer(again).networks.autoencoder, model)
    other = fine_tuning_flux2(tiny, tmp_path / "run", "freeze_encoder=true", "decoder.widths=[8, 16]")
    assert (other.decoder.widths, other.model.decoder_block_out_channels) == ((8, 16), None)


def test_what_contradicts_is_refused(tiny, place):
    with pytest.raises(ConfigError, match="decoder_block_out_channels"):
        fine_tuning_flux2(tiny, place, "model.decoder_block_out_channels=[8]")
    older = "model.decoder_block_out_channels=[8, 16]"
    with pytest.raises(ConfigError, match=r"decoder\.widths` is \[8, 8\].*older name, is \[8, 16\].*to null"):
        fine_tuning_flux2(tiny, place, older, "decoder.widths=[8, 8]")
    assert fine_tuning_flux2(tiny, place, older, "decoder.widths=[8, 16]").decoder.widths == (8, 16)
    # The older name alone chooses widths, too.
    wider = Trainer(fine_tuning_flux2(tiny, place, older)).networks.autoencoder
    assert wider.decoder.conv_in.weight.shape[0] == 16
    # Leaving the class out takes the pretrained model's only where nothing else is chosen.
    with pytest.raises(ValueError, match=r"model\.class=Flux2VAE"):
        Trainer(fine_tuning_flux2(tiny, place, "model.class=KLVAE"))
