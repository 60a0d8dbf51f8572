"""A decoder of another shape, trained by two ranks and by one with a batch twice as large."""

import json

import pytest
import torch
from safetensors.torch import load_file

from latentae.training.trainer import Trainer
from tests.processes import launch
from tests.training.pretrained_models import KL, fine_tuning, make_pretrained, write_pretrained


def weights(run):
    return load_file(run / "model/diffusion_pytorch_model.safetensors")


def test_two_ranks_equal_one(tiny, tmp_path):
    place = write_pretrained(make_pretrained(norm_num_groups=4), tmp_path, "diffusers folder")
    shared = ["freeze_encoder=true", "decoder={widths: [8, 8], upscale: 2}", "max_steps=3"]
    # Adam divides by the gradient's size, which turns the rounding of a tiny one into a whole step.
    shared += ["checkpoint_every=3", "optimizer.epsilon=1.0e-3", *KL]
    Trainer(fine_tuning(tiny, place, *shared, "batch_size=4", f"output_dir={tmp_path}/one")).fit()
    given = [f"model.pretrained={place}", *shared, "batch_size=2", f"output_dir={tmp_path}/two"]
    launch("scripts/train_kl_vae.py", 2, "--config", str(tiny.file), *given, HF_HUB_OFFLINE="1")
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one["decoder.conv_out.weight"].shape == (12, 8, 3, 3)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5)
    summaries = [json.loads((tmp_path / run / "summary.json").read_text()) for run in ("one", "two")]
    for name in ("psnr", "psnr_downscaled", "lpips"):
        assert summaries[1][name] == pytest.approx(summaries[0][name], abs=1e-3)
    assert torch.equal(
        one["encoder.conv_in.weight"], make_pretrained(norm_num_groups=4).encoder.conv_in.weight
    )
