"""Runs of KL-VAEs whose decoder is not the mirror of their encoder."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from latentae import KLVAE, load_autoencoder
from latentae.config import ConfigError, load_config
from latentae.losses.adversarial import AdversarialTerms
from latentae.models.decoders import downscale, reconstruct
from latentae.training.adversary import Adversary
from latentae.training.dry_run import dry_run
from latentae.training.finish import evaluate_reconstruction
from latentae.training.latent_losses import LatentLosses
from latentae.training.randomness import StepRandomness
from latentae.training.step import TrainingStep
from latentae.training.trainer import Trainer
from tests.models.conftest import make
from tests.training.pretrained_models import KL, fine_tuning, make_pretrained, write_pretrained
from tests.training.small_networks import assert_same_gradients, gradients, small_networks

SHAPES = {"narrow": "decoder={widths: [8, 8]}", "x2": "decoder={upscale: 2}"}
DECODER = ("decoder", "post_quant_conv")
CPU = torch.device("cpu")


@pytest.fixture
def place(tmp_path):
    return write_pretrained(make_pretrained(), tmp_path, "diffusers folder")


def weights(run):
    return load_file(run / "model/diffusion_pytorch_model.safetensors")


def trained(tiny, place, *overrides):
    """The trainer of a finished run of a frozen encoder, and its summary."""
    trainer = Trainer(fine_tuning(tiny, place, "freeze_encoder=true", "max_steps=3", *overrides))
    return trainer, trainer.fit()


@pytest.mark.parametrize("kind", SHAPES)
def test_only_the_decoder_changes(tiny, tmp_path, place, kind, capsys):
    trainer, summary = trained(tiny, place, SHAPES[kind])
    before = make_pretrained()
    model = load_autoencoder(tmp_path / "run")
    assert type(model) is KLVAE
    assert model.stock_objection is not None
    for name, value in before.state_dict().items():
        if not name.startswith(DECODER):
            assert torch.equal(model.state_dict()[name], value), name
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    assert torch.equal(
        model.to_latents(images, torch.manual_seed(0)), before.to_latents(images, torch.manual_seed(0))
    )
    fresh = make_pretrained(
        **({"decoder_block_out_channels": (8, 8)} if kind == "narrow" else {"upscale": 2})
    )
    assert model.state_dict()["decoder.conv_out.weight"].shape == fresh.decoder.conv_out.weight.shape
    assert summary["scaling_factor"] == 0.37
    (record,) = json.loads((tmp_path / "run/pretrained.json").read_text())["adapted"]
    assert record.startswith("decoder [8, 16] -> ")
    assert ("psnr_downscaled" in summary) == (kind == "x2")
    assert "loads with latentae.load_autoencoder" in capsys.readouterr().out
    if kind == "x2":
        # The training images are those of the decoder; sample pictures show them at their size.
        assert model.config.sample_size == 16
        assert model(images).sample.shape[-2:] == (64, 64)
        assert Image.open(tmp_path / "run/samples/step_000003.png").size[1] == 4 * (32 + 4)
    assert trainer.networks.autoencoder.training


@pytest.mark.parametrize("kind", SHAPES)
def test_a_resumed_run_equals_an_uninterrupted_one(tiny, tmp_path, place, kind):
    shared = ["optimizer.schedule=constant", "checkpoint_every=1", SHAPES[kind]]
    trained(tiny, place, *shared, f"output_dir={tmp_path}/whole")
    trained(tiny, place, *shared, "max_steps=1")
    shutil.rmtree(place)  # the run itself tells its shape
    continued = Trainer(fine_tuning(tiny, place, "freeze_encoder=true", "max_steps=3", *shared[:2]))
    assert continued.step == 1
    continued.fit()
    own, whole = weights(tmp_path / "run"), weights(tmp_path / "whole")
    assert own.keys() == whole.keys()
    for name, value in whole.items():
        assert torch.equal(own[name], value), name


def test_a_run_from_scratch(tiny, tmp_path):
    arguments = ["--config", str(tiny.file), *KL, "decoder={widths: [4, 8], upscale: 2}", "max_steps=2"]
    summary = Trainer(load_config("kl_vae", [*arguments, "validate_every=2"])).fit()
    model = load_autoencoder(tmp_path / "run")
    assert model.decoder.conv_out.weight.shape == (12, 4, 3, 3)
    assert model.upscale == 2
    # The scale is that of latents of downscaled images, folded or not.
    assert summary["scale_source"] == "measured on the training images"
    line = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert line["validation_psnr_downscaled"] == pytest.approx(summary["psnr_downscaled"], abs=1e-3)


def test_the_target_is_the_image_itself():
    """A model that copies its input through an identity is measured at what downscaling loses."""
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    seen = []

    class Enlarging(nn.Module):
        upscale = 2

        def forward(self, x, **_):
            seen.append(x)
            output = make(KLVAE).eval()(x)
            output.sample = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
            return output

    prepared = LatentLosses(2, upscale=2).prepare(images, StepRandomness(0, 0))
    assert prepared.target is images
    assert torch.equal(prepared.images, downscale(images, 2))
    usual = LatentLosses(2).prepare(images, StepRandomness(0, 0))
    assert usual.images is usual.target is images

    batch = {"images": images, "indices": torch.arange(2)}
    distance = lambda a, b: (a - b).square().mean(dim=(1, 2, 3))  # noqa: E731
    quality = evaluate_reconstruction(Enlarging(), [batch], distance, CPU)
    assert torch.equal(seen[0], downscale(images, 2))
    lost = images - downscale(images, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = -10 * torch.log10(lost.square().mean(dim=(1, 2, 3)) / 4).mean().item()
    assert quality.psnr == pytest.approx(expected, abs=0.1)  # of 8 bits
    assert quality.psnr_downscaled > 50
    # Images that have as little detail as the encoder sees are reconstructed.
    smooth = downscale(images, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    quality = evaluate_reconstruction(Enlarging(), [batch | {"images": smooth}], distance, CPU)
    assert quality.psnr > 50


@pytest.mark.parametrize("upscale", [1, 2])
def test_a_step_has_the_gradients_of_autograd(upscale):
    """With the adaptive weight, whose gradients are taken before the pixel shuffle."""
    _, discriminator, objective = small_networks()
    torch.manual_seed(1)
    model = make(KLVAE, upscale=upscale).double().train()
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64) * 2 - 1
    twin, critic = copy.deepcopy((model, discriminator))

    sample = twin(downscale(images, upscale)).sample
    nll, _ = objective(sample, images)
    adversarial = -critic(sample).mean()
    (first,) = torch.autograd.grad(nll, twin.last_layer.weight, retain_graph=True)
    (second,) = torch.autograd.grad(adversarial, twin.last_layer.weight, retain_graph=True)
    weight = 0.7 * (first.norm() / (second.norm() + 1e-4)).clamp(0, 1e4)
    twin.zero_grad()
    (nll + weight.detach() * adversarial).backward(inputs=list(twin.parameters()))

    losses = LatentLosses(model.downsampling_factor, model.upscale)
    adversary = Adversary(discriminator, AdversarialTerms(weight=0.7))
    step = TrainingStep(model, model.last_layer, objective, adversary, latent_losses=losses)
    assert step(images, StepRandomness(0, 0)).losses["adversarial_weight"].item() == pytest.approx(
        weight.item()
    )
    assert_same_gradients(gradients(model), gradients(twin))


def test_widths_of_the_mirror_leave_a_stock_model(tiny, tmp_path, place):
    usual = fine_tuning(tiny, place, "freeze_encoder=true", "max_steps=1", f"output_dir={tmp_path}/usual")
    Trainer(usual).fit()
    trained(tiny, place, "max_steps=1", "decoder={widths: [8, 16]}")
    configs = [json.loads((tmp_path / run / "model/config.json").read_text()) for run in ("usual", "run")]
    assert configs[0] == configs[1]
    assert configs[0]["_class_name"] == "AutoencoderKL"
    for name, value in weights(tmp_path / "usual").items():
        assert torch.equal(weights(tmp_path / "run")[name], value), name


def test_training_goes_on_from_a_decoder_of_its_own(tiny, tmp_path):
    teacher = make_pretrained(decoder_block_out_channels=(8, 8), upscale=2)
    place = write_pretrained(teacher, tmp_path, "our folder")
    config = fine_tuning(tiny, place, "freeze_encoder=true")
    assert config.decoder.model_dump() == {"widths": (8, 8), "layers_per_block": 1, "upscale": 2}
    trainer = Trainer(config)
    for name, value in teacher.state_dict().items():
        assert torch.equal(trainer.networks.autoencoder.state_dict()[name], value), name
    with pytest.raises(ValueError, match=r"no `decoder`; to keep it, set decoder=\{widths: \[8, 8\]"):
        Trainer(fine_tuning(tiny, place, "decoder=null", f"output_dir={tmp_path}/other"))


def test_a_dry_run_tells_sizes(tiny, place):
    report = dry_run(fine_tuning(tiny, place, "freeze_encoder=true", SHAPES["x2"]))
    expected = "3x16x16 -> 4x8x8 (f2), 3:1 in numbers; decoded to 3x32x32 (x2)"
    assert expected in " ".join(str(report).split())


def test_levels_that_differ_from_those_of_the_model(tiny, place):
    with pytest.raises(
        ConfigError, match=r"`decoder.widths` is \[8, 8, 8\]; it needs one number for each of the 2"
    ):
        fine_tuning(tiny, place, "decoder={widths: [8, 8, 8]}")


def test_reconstructions_keep_the_size_of_originals():
    model = make(KLVAE, upscale=2)
    images = torch.from_numpy(np.zeros((1, 3, 32, 32), np.float32))
    assert reconstruct(model, images).sample.shape == images.shape
