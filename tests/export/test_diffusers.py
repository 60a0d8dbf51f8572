import json

import torch
from diffusers import VQModel
from safetensors.torch import load_file

from latentae.export import export_diffusers
from tests.models.conftest import make


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
