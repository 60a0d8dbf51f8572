import json

import pytest
import torch
from diffusers import AutoencoderKL, VQModel
from safetensors.torch import load_file

from latentae.export import export_autoencoder, export_diffusers
from tests.export.conftest import make_kl, make_vq
from tests.models.conftest import make

MEAN, STD = (1.0, -2.0, 0.5, 0.0), (2.0, 0.5, 1.0, 4.0)


def test_a_folder_of_the_stock_class_and_nothing_else(tmp_path):
    torch.manual_seed(0)
    model = make(quantizer={"type": "ema", "revive_after": 10})
    export_diffusers(model, tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    config = json.loads((tmp_path / "model/config.json").read_text())
    assert config["_class_name"] == "VQModel"
    assert "quantizer" not in config
    assert set(load_file(tmp_path / "model/diffusion_pytorch_model.safetensors")) == set(model.state_dict())
    images = torch.rand(1, 3, 16, 16)
    stock = VQModel.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(stock(images).sample, model(images).sample, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtype(tmp_path, dtype):
    model = make_kl()
    export_diffusers(model, tmp_path / "model", dtype)
    state = load_file(tmp_path / "model/diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {dtype}
    assert model.dtype == torch.float32


def test_kl_keeps_shift_and_numbers_by_channel(tmp_path, images):
    model = make_kl(latents_mean=MEAN, latents_std=STD)
    assert export_autoencoder(model, tmp_path / "model", format="diffusers").remarks == ()
    stock = AutoencoderKL.from_pretrained(tmp_path / "model").eval()
    config = stock.config
    assert (config.scaling_factor, config.shift_factor) == (0.7, 0.3)
    assert (tuple(config.latents_mean), tuple(config.latents_std)) == (MEAN, STD)
    assert (stock(images).sample - model(images).sample).abs().max() < 1e-5


def test_vq_shift_goes_into_the_weights(tmp_path, images):
    model = make_vq(shift_factor=0.4)
    (remark,) = export_autoencoder(model, tmp_path / "model", format="diffusers").remarks
    assert "folded into the convolutions" in remark
    stock = VQModel.from_pretrained(tmp_path / "model").eval()
    assert (stock.encode(images).latents * 0.7 - model.to_latents(images)).abs().max() < 1e-5
    assert (stock(images).sample - model(images).sample).abs().max() < 1e-5
    assert model.config.shift_factor == 0.4


def test_what_pipelines_trip_over_is_mended_or_said(tmp_path):
    model = make_kl(use_quant_conv=False, use_post_quant_conv=False, force_upcast=True, scaling_factor=None)
    model.register_to_config(shift_factor=None)
    remarks = export_autoencoder(model, tmp_path / "model", format="diffusers", family="sd1").remarks
    assert [remark.split(",")[0] for remark in remarks] == [
        "family sd1 changes nothing in this format",
        "the scale of the latents is not known",
        "force_upcast is off",
    ]
    config = json.loads((tmp_path / "model/config.json").read_text())
    assert config["shift_factor"] == 0.0
    assert config["force_upcast"] is False
    assert model.config.force_upcast is True
