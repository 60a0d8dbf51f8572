"""The decoder alone, trained by two ranks and by one with a batch twice as large."""

import json

import pytest
import torch
from safetensors.torch import load_file

from latentae import VQGAN, load_autoencoder
from latentae.training.trainer import Trainer
from tests.processes import launch
from tests.training.pretrained_models import fine_tuning, make_pretrained, write_pretrained


def weights(run):
    return load_file(run / "model/diffusion_pytorch_model.safetensors")


def test_two_ranks_with_a_frozen_encoder_equal_one(tiny, tmp_path):
    # Two channels a group: a group of one takes away what the bias before it adds, and no gradient is left.
    pretrained = make_pretrained(VQGAN, norm_num_groups=4)
    place = write_pretrained(pretrained, tmp_path, "diffusers folder")
    shared = ["freeze_encoder=true", "model.quantizer.type=ema", "max_steps=4", "checkpoint_every=4"]
    shared += ["gradient_accumulation_steps=2"]
    # Adam divides by the gradient's size, which turns the rounding of a tiny one into a whole step.
    shared += ["optimizer.epsilon=1.0e-3", "discriminator.optimizer.epsilon=1.0e-3"]
    alone = fine_tuning(tiny, place, *shared, "batch_size=4", f"output_dir={tmp_path}/one", cls=VQGAN)
    Trainer(alone).fit()
    given = [f"model.pretrained={place}", *shared, "batch_size=2", f"output_dir={tmp_path}/two"]
    launch("scripts/train_vqgan.py", 2, "--config", str(tiny.file), *given, HF_HUB_OFFLINE="1")
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")

    before = pretrained.to_diffusers().state_dict()
    for name, value in before.items():
        if name.startswith(("decoder", "post_quant_conv")):
            torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5)
            # Attention does not depend on the bias of its keys.
            assert name.endswith("to_k.bias") or not torch.equal(two[name], value), name
        else:
            assert torch.equal(one[name], value), name
            assert torch.equal(two[name], value), name
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    latents = [load_autoencoder(path).to_latents(images) for path in (place, tmp_path / "two")]
    assert torch.equal(*latents)
    psnr = [json.loads((tmp_path / run / "summary.json").read_text())["psnr"] for run in ("one", "two")]
    assert psnr[1] == pytest.approx(psnr[0], abs=1e-3)
