"""Runs of RGBA models: composites in the losses, two ranks equal one, resume, refusals, measurements."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from latentae import KLVAE
from latentae.config import ConfigError, load_config
from latentae.discriminators import PatchGAN
from latentae.evaluation.evaluate import Request, evaluate
from latentae.evaluation.reconstruct import plan_jobs, run_jobs
from latentae.losses.compositing import composites
from latentae.models import AutoencoderOutput, load_autoencoder
from latentae.report.grids import checkerboard
from latentae.training.adversary import Adversary
from latentae.training.finish import evaluate_reconstruction
from latentae.training.randomness import StepRandomness
from latentae.training.trainer import Trainer
from tests.data.pictures import encoded_images, shows_green, write_cutout
from tests.processes import launch
from tests.training.pretrained_models import KL, make_pretrained

ALPHA = ["model.in_channels=4", "data.alpha=true", "log_every=1", "model.quantizer.revive_after=null"]


def cut_out(folder):
    """Gives the images of a folder a soft elliptical alpha."""
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        rows, columns = np.mgrid[-1 : 1 : 1j * pixels.shape[0], -1 : 1 : 1j * pixels.shape[1]]
        alpha = np.clip((0.9 - np.hypot(rows, columns)) * 4, 0, 1) * 255
        Image.fromarray(np.dstack([pixels, alpha.round().astype(np.uint8)])).save(path)


@pytest.fixture
def tiny_rgba(tiny, tmp_path):
    cut_out(tmp_path / "images")

    def config(*overrides):
        return tiny(*ALPHA, *overrides)

    config.file = tiny.file
    return config


def weights(run, step=6):
    folder = run / f"checkpoints/step_{step:06d}"
    return {**load_file(folder / "model.safetensors"), **load_file(folder / "model_1.safetensors")}


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_backgrounds_are_a_function_of_seed_step_and_place():
    whole = StepRandomness(7, 3).background_colours(4)
    ranks = [StepRandomness(7, 3, rank=rank, world_size=2).background_colours(2) for rank in range(2)]
    assert torch.equal(whole, torch.cat(ranks))
    assert whole.shape == (4, 3)
    assert -1 <= whole.min() < 0 < whole.max() <= 1
    assert torch.equal(whole, StepRandomness(7, 3).background_colours(4))
    assert not torch.equal(whole, StepRandomness(7, 4).background_colours(4))
    assert not torch.equal(whole, StepRandomness(8, 3).background_colours(4))


def test_the_discriminator_sees_both_over_the_same_backgrounds():
    seen = []

    class Recorder(PatchGAN):
        def forward(self, images):
            seen.append(images.detach())
            return super().forward(images)

    torch.manual_seed(0)
    adversary = Adversary(Recorder(3, base_channels=8, num_layers=1), alpha=True)
    images, reconstruction = torch.rand(2, 2, 4, 16, 16) * 2 - 1
    randomness = StepRandomness(0, 5)
    adversary.discriminator_loss(images, reconstruction, None, randomness)
    colours = randomness.background_colours(2)
    assert torch.equal(seen[0], composites(reconstruction, colours))
    assert torch.equal(seen[1], composites(images, colours))


def test_two_ranks_equal_one(tiny_rgba, tmp_path):
    shared = ["gradient_accumulation_steps=2", "discriminator.augment=[color, cutout]", "validate_every=3"]
    shared += ["optimizer.epsilon=1.0e-3", "discriminator.optimizer.epsilon=1.0e-3"]
    Trainer(tiny_rgba(*shared, "batch_size=4", f"output_dir={tmp_path}/one")).fit()
    shared += [*ALPHA, "batch_size=2", f"output_dir={tmp_path}/two"]
    launch("scripts/train_vqgan.py", 2, "--config", str(tiny_rgba.file), *shared)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5, msg=name)
    for ours, theirs in zip(lines(tmp_path / "two"), lines(tmp_path / "one"), strict=True):
        assert ours.keys() == theirs.keys()
        for key in ours.keys() - {"images_per_second"}:
            assert ours[key] == pytest.approx(theirs[key], rel=1e-3, abs=1e-5), key
    assert "validation_alpha_psnr" in lines(tmp_path / "one")[2]


def test_a_resumed_run_equals_an_uninterrupted_one(tiny_rgba, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    changes = ["optimizer.schedule=constant", "validate_every=6"]
    summary = Trainer(tiny_rgba(*changes, f"output_dir={whole}")).fit()
    Trainer(tiny_rgba(*changes, f"output_dir={parts}", "max_steps=3")).fit()
    Trainer(tiny_rgba(*changes, f"output_dir={parts}")).fit()
    one, other = weights(whole), weights(parts)
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
    with pytest.raises(ConfigError, match=r"data\.alpha"):
        Trainer(tiny_rgba(*changes, f"output_dir={parts}", "max_steps=8", "data.alpha=false"))
    # What was measured, by this run and by the commands.
    assert summary["psnr"] == pytest.approx((summary["psnr_black"] + summary["psnr_white"]) / 2)
    assert 0 < summary["alpha_psnr"] < 60
    assert 0 < summary["psnr_random"] < 60
    request = Request(
        [f"ours={whole}"], str(tmp_path / "images"), tmp_path / "report", protocol="crop-32", alpha=True
    )
    results = evaluate(request, torch.device("cpu"))
    metrics = results.models["ours"]
    assert {"alpha_psnr", "psnr_random", "lpips_alex", "cycle_psnr_2"} <= metrics.keys() | {"cycle_psnr_2"}
    assert metrics["psnr"].value == pytest.approx(
        (metrics["psnr_black"].value + metrics["psnr_white"].value) / 2
    )
    assert results.protocol["alpha"]
    with Image.open(tmp_path / "report" / results.pictures[0].original) as picture:
        shown = np.asarray(picture)
    assert np.array_equal(shown[0, 0], checkerboard(1, 1)[0, 0])  # corners are transparent
    assert picture.mode == "RGB"
    job = plan_jobs(tmp_path / "images" / "000.png", tmp_path / "beside.png")
    (comparison,) = run_jobs(load_autoencoder(str(whole)), job, alpha=True)
    assert math.isfinite(comparison.psnr)
    with Image.open(tmp_path / "beside.png") as picture:
        assert np.asarray(picture)[2:10, 2:10].min() == 255
        assert np.asarray(picture)[2:10, 10:12].tolist() == [[[204] * 3] * 2] * 8


def test_alpha_is_off_by_default(tiny, tmp_path):
    cut_out(tmp_path / "images")
    trainer = Trainer(tiny("model.in_channels=4", "max_steps=1"))
    summary = trainer.fit()
    assert "alpha_psnr" not in summary
    assert trainer.networks.step.alpha is False
    assert next(trainer.networks.step.adversary.discriminator.parameters()).shape[1] == 4


def test_images_without_transparency_are_refused(tiny):
    with pytest.raises(ConfigError, match=r"`data\.alpha` is true, but none of \d+ images"):
        Trainer(tiny(*ALPHA))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["model.in_channels=3"], "`model.in_channels` is 3"),
        (["model.out_channels=3"], "`model.out_channels` is 3"),
        (["loss.spectral={}"], "`loss.spectral`"),
        (["loss.equivariance={min_scale: 0.5}"], "`loss.equivariance`"),
    ],
)
def test_contradictions_are_refused(tiny, overrides, says):
    with pytest.raises(ConfigError, match=r"`data\.alpha` is true") as error:
        tiny(*ALPHA, *overrides)
    assert says in str(error.value)


def test_a_grown_model_first_reconstructs_what_it_did(tiny_rgba, tmp_path):
    (tmp_path / "images").rename(tmp_path / "rgba")
    here = [f"data.name={tmp_path}/rgba"]
    Trainer(tiny_rgba(*here, "data.alpha=false", "model.in_channels=3", "max_steps=1")).fit()
    before = load_autoencoder(str(tmp_path / "run"))
    request = Request([f"{tmp_path}/run"], f"{tmp_path}/rgba", tmp_path / "report", alpha=True)
    with pytest.raises(ValueError, match="alpha is set, but the models take images of 3 channels"):
        evaluate(request, torch.device("cpu"))
    with pytest.raises(ValueError, match="alpha is set, but the model takes images of 3 channels"):
        next(run_jobs(before, plan_jobs(tmp_path / "rgba/000.png", tmp_path / "x.png"), alpha=True))
    grown = [f"model.pretrained={tmp_path}/run/model", f"output_dir={tmp_path}/grown", "max_steps=2"]
    own_keys = ["block_out_channels=[8, 16]", "layers_per_block=1", "norm_num_groups=4", "latent_channels=4"]
    grown += [f"model.{key}" for key in [*own_keys, "quantizer.num_codes=16"]]
    trainer = Trainer(tiny_rgba(*here, *grown))
    own = trainer.networks.autoencoder.eval()
    images = torch.rand(2, 4, 32, 32) * 2 - 1
    with torch.no_grad():
        now, then = own(images).sample, before(images[:, :3]).sample
    torch.testing.assert_close(now[:, :3], then, rtol=1e-4, atol=1e-5)
    assert torch.equal(now[:, 3:], torch.ones(2, 1, 32, 32))
    trainer.fit()
    assert any(
        "alpha" in line for line in json.loads((tmp_path / "grown/pretrained.json").read_text())["adapted"]
    )
    with pytest.raises(ValueError, match="does not see transparency"):
        Trainer(tiny_rgba(*here, *grown, f"output_dir={tmp_path}/frozen", "freeze_encoder=true"))


@pytest.mark.parametrize("alpha", [True, False])
def test_a_model_that_upscales_encodes_images_downscaled_by_alpha(tiny, tmp_path, alpha):
    """In steps, by the teacher, in sample pictures, in validation, in the measurement of the scale."""
    (tmp_path / "images").rename(tmp_path / "rgb")
    for number in range(10):
        write_cutout(tmp_path / f"images/{number:02d}.npy", side=32, red=1 - number / 20)
    make_pretrained(KLVAE, in_channels=4, out_channels=4).save_pretrained(tmp_path / "teacher")
    words = [*KL, "model.in_channels=4", f"data.alpha={str(alpha).lower()}", "decoder={upscale: 2}"]
    words += ["data.downscale=null", "max_steps=2", "sample_every=1", "validate_every=1"]
    words += [f"loss.teacher={{model: {tmp_path}/teacher}}"]
    with encoded_images() as seen:
        trainer = Trainer(load_config("kl_vae", ["--config", str(tiny.file), *words]))
        summary = trainer.fit()
    shapes = {tuple(images.shape[1:]) for images in seen}
    assert shapes == {(4, 16, 16)}
    assert len(seen) > 10
    assert all(shows_green(images) != alpha for images in seen)
    assert summary["scale_source"] == "measured on the training images"
    assert math.isfinite(summary["psnr_downscaled"])


def test_the_downscaled_psnr_is_of_composites():
    """A model that repeats each pixel is perfect at the encoder's size, whatever it hides."""

    class Enlarging(torch.nn.Module):
        upscale = 2

        def forward(self, images):
            sample = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
            sample[:, :3] = torch.where(sample[:, 3:] == -1, 0.7, sample[:, :3])
            return AutoencoderOutput(sample=sample)

    images = torch.rand(2, 4, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    images[:, 3] = torch.where(images[:, 3] < 0, -1.0, 1.0)
    batch = {"images": images, "indices": torch.arange(2)}
    distance = lambda a, b: (a - b).square().mean(dim=(1, 2, 3))  # noqa: E731
    quality = evaluate_reconstruction(Enlarging(), [batch], distance, torch.device("cpu"), alpha=True)
    assert quality.psnr_downscaled > 45  # of 8 bits
    assert quality.psnr < 20
