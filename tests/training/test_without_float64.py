"""Whole runs on a device without float64, such as Apple's GPUs."""

import json
import math

import pytest
import torch
from accelerate.state import PartialState

from latentae.config import load_config
from latentae.latents import calibration
from latentae.training import trainer
from tests.pretend_device import pretend_device
from tests.processes import fork
from tests.training.conftest import TINY, draw_images

WITHOUT_GAN = ["loss.adversarial=null", "discriminator=null"]
KL = ["model.class=KLVAE", "loss.kl={weight: 0.01}"]
VQ = ["model.class=VQVAE", *WITHOUT_GAN]
LATENT_LOSSES = ["loss.equivariance={min_scale: 0.97}", "loss.latent_noise={scale: 0.1}", "loss.spectral={}"]
RUNS = {
    "vqgan": ["validate_every=2"],
    "kl_vae": [
        *KL,
        *LATENT_LOSSES,
        *WITHOUT_GAN,
        "loss.perceptual=null",
        "loss.reconstruction={type: gaussian}",
    ],
    "ema": [
        "model.quantizer.type=ema",
        "loss.adversarial.lecam={weight: 0.1}",
        "discriminator.r1={weight: 1.0}",
    ],
}
for kind in ("cosine", "simvq", "ibq"):
    RUNS[kind] = [f"model.quantizer={{type: {kind}, num_codes: 16}}", *VQ]
RUNS["fsq"] = ["model.quantizer={type: fsq, levels: [3, 3, 3, 3]}", *VQ]
for kind in ("lfq", "bsq"):
    RUNS[kind] = [f"model.quantizer={{type: {kind}, bits: 4}}", *VQ]
MEMBER = "member: {type: vector, num_codes: 16}"
RUNS["residual"] = [f"model.quantizer={{type: residual, depth: 2, {MEMBER}}}", *VQ]
RUNS["grouped"] = [f"model.quantizer={{type: grouped, groups: 2, {MEMBER}}}", *VQ]


def train(folder, name):
    """A run in a process of its own, which writes no weights: the pretended device cannot."""
    calibration.FEWEST_VIEWS = 16
    trainer.Trainer._save_checkpoint = lambda self: None
    trainer.export_run = lambda model, folder: None
    trainer.describe = lambda folder, summary: ""
    create = trainer.create_accelerator

    def on_the_device(config):
        accelerator = create(config)
        accelerator.state.device = PartialState._shared_state["device"] = torch.device("apple", 0)
        return accelerator

    trainer.create_accelerator = on_the_device
    family = {"kl_vae": "kl_vae", "vqgan": "vqgan", "ema": "vqgan"}.get(name, "vq_vae")
    config = load_config(family, ["--config", str(folder / "tiny.yaml"), *RUNS[name], "max_steps=4"])
    with pretend_device() as device:
        run = trainer.Trainer(config)
        assert {p.device for p in run.networks.autoencoder.parameters()} == {device}
        summary = run.fit()
    (folder / "summary.json").write_text(json.dumps(summary))


@pytest.mark.parametrize("name", RUNS)
def test_a_run(tmp_path, alexnet_trunk, name):
    draw_images(tmp_path / "images")
    lines = TINY.format(folder=tmp_path).splitlines(keepends=True)
    lines = [line for line in lines if name != "kl_vae" or "quantizer:" not in line]
    (tmp_path / "tiny.yaml").write_text("".join(lines))
    process = fork(train, tmp_path, name)
    process.join(60)
    assert process.exitcode == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["step"] == 4
    assert 10 < summary["psnr"] < 40
    assert all(math.isfinite(summary[key]) for key in ("ssim", "lpips", "scaling_factor", "shift_factor"))
