"""Runs with all losses of latents: resumed as if never stopped, and logging each of them."""

import math

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from latentae.config import load_config
from latentae.training.dry_run import measure_memory
from latentae.training.trainer import Trainer
from tests.training.launch import flatten, log_lines, states_of

KL = ["model.class=KLVAE", "loss.adversarial=null", "discriminator=null", "loss.kl.weight=0.01"]


@pytest.fixture
def everything(tiny, tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    Dinov2Model(Dinov2Config(**sizes, image_size=8, patch_size=2)).save_pretrained(tmp_path / "transformer")
    losses = [
        "loss.perceptual=null",
        "loss.equivariance={probability: 0.6, min_scale: 0.5, low_resolution_probability: 0.5}",
        "loss.latent_noise={scale: 0.3}",
        "loss.spectral={}",
        f"loss.alignment={{network: {tmp_path}/transformer, cosine_margin: 0.1}}",
        "log_every=1",
    ]

    def config(family, *overrides):
        model = KL if family == "kl_vae" else []
        return load_config(family, ["--config", str(tiny.file), *model, *losses, *overrides])

    return config


@pytest.mark.parametrize("family", ["kl_vae", "vqgan"])
def test_resumed_equals_uninterrupted(everything, tmp_path, family):
    states = {}
    for run, steps in (("whole", [4]), ("halves", [2, 4])):
        for count in steps:
            words = (f"output_dir={tmp_path}/{run}", f"max_steps={count}", "optimizer.schedule=constant")
            trainer = Trainer(everything(family, "gradient_accumulation_steps=2", *words))
            trainer.fit()
        states[run] = flatten(states_of(trainer))
    assert any("projection" in name for name in states["whole"])
    for name, value in states["whole"].items():
        other = states["halves"][name]
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name
    whole, halves = log_lines(tmp_path / "whole"), log_lines(tmp_path / "halves")
    for line, other in zip(whole, halves, strict=True):
        assert {
            name: (value, other.get(name)) for name, value in line.items() if other.get(name) != value
        } == {}
    names = set().union(*whole)
    assert {"equivariance", "spectral", "alignment", "alignment_weight", "alignment_cosine"} <= names
    assert all(math.isfinite(line["loss"]) for line in whole)


def test_a_rehearsal_measures_whole_images(everything):
    """Not those that a transform happens to make smaller."""
    trainer = Trainer(everything("kl_vae", "loss.equivariance.probability=1.0"), rehearsal=True)
    shapes = []
    trainer.networks.autoencoder.decoder.register_forward_hook(
        lambda module, arguments, output: shapes.append(tuple(output.shape[-2:]))
    )
    before = trainer.networks.step.latent_losses.equivariance
    measure_memory(trainer, trainer.batches())
    assert shapes[0] == (32, 32)
    assert trainer.networks.step.latent_losses.equivariance is before
