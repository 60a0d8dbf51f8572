import json

import pytest
import torch

from latentae.data import CenterCrop, FolderSource, ImageDataset
from latentae.training import finish
from latentae.training.folder import RunError, RunFolder
from tests.models.conftest import make
from tests.training.conftest import draw_images


@pytest.fixture
def images(tmp_path):
    draw_images(tmp_path / "images", count=4)
    return ImageDataset(FolderSource(tmp_path / "images"), CenterCrop(32), channels=3)


def l1_distance(reconstruction, images):
    return (reconstruction - images).abs().mean(dim=(1, 2, 3))


def measure(model, images, config, said):
    return finish.calibrate_and_measure(
        model, images, images, l1_distance, config, device=torch.device("cpu"), say=said.append
    )


def test_the_numbers_of_a_summary(images, tiny):
    model, said = make(), []
    numbers = measure(model, images, tiny(), said)
    assert numbers["images"] == 4
    assert numbers["scaling_factor"] == model.config.scaling_factor
    latents = torch.cat([model.to_latents(images[0, i]["images"][None]) for i in range(4)])
    assert latents.mean().abs() < 0.01
    assert latents.std().item() == pytest.approx(1, abs=0.01)
    assert said == []


def test_latents_that_cannot_be_measured_do_not_lose_the_run(images, tiny):
    model, said = make(), []
    torch.nn.init.zeros_(model.quant_conv.weight)
    numbers = measure(model, images, tiny(), said)
    assert numbers["scaling_factor"] is None
    assert numbers["psnr"] > 0
    assert said[0].startswith("the latents' scale could not be measured")


def test_the_stock_class_wherever_it_fits(tmp_path):
    folder = RunFolder(tmp_path)
    finish.export_run(make(), folder)
    assert json.loads((folder.model / "config.json").read_text())["_class_name"] == "VQModel"


def test_an_export_that_fails_leaves_the_model_before_it(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    finish.export_run(make(), folder)
    before = (folder.model / "config.json").read_bytes()

    def no_room(model, path):
        path.mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(finish, "export_diffusers", no_room)
    with pytest.raises(RunError, match="No space left on device"):
        finish.export_run(make(), folder)
    assert (folder.model / "config.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_frozen_encoder_s_scale_is_not_measured_anew(images, tiny, monkeypatch):
    monkeypatch.setattr(finish, "calibrate_on", None)
    model, said = make(scaling_factor=0.37, shift_factor=0.2), []
    config = tiny("freeze_encoder=true", "model.pretrained=some/model", *ARCHITECTURE)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    numbers = measure(model, images, config, said)
    assert (numbers["scaling_factor"], numbers["shift_factor"]) == (0.37, 0.2)
    assert numbers["scale_source"] == "of the pretrained model"
    assert (model.config.scaling_factor, model.config.shift_factor) == (0.37, 0.2)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


# What a pretrained model would bring.
ARCHITECTURE = [
    "model.block_out_channels=[8,16]",
    "model.norm_num_groups=4",
    "model.latent_channels=4",
    "model.quantizer.num_codes=16",
]
