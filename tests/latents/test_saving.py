import json

import pytest
import torch

from latentae import load_autoencoder
from latentae.latents.saving import choose_place, write_model
from tests.latents.conftest import make_kl


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def test_a_new_folder_is_written_and_nothing_beside_it(tmp_path):
    place = tmp_path / "deep" / "model"
    assert 0 <= write_model(make_kl(scaling_factor=0.25), place) < 1e-5
    assert names(place.parent) == ["model"]
    assert names(place) == ["config.json", "diffusion_pytorch_model.safetensors"]
    config = json.loads((place / "config.json").read_text())
    assert (config["_class_name"], config["scaling_factor"]) == ("AutoencoderKL", 0.25)


def test_a_replaced_model_keeps_its_card(tmp_path):
    place = tmp_path / "model"
    write_model(make_kl(scaling_factor=0.25), place)
    (place / "README.md").write_text("a card")
    # What a larger model would be split into; the new weights fit into one file.
    (place / "diffusion_pytorch_model-00001-of-00002.safetensors").write_bytes(b"old")
    assert choose_place(str(place), None, in_place=True) == place
    write_model(make_kl(scaling_factor=0.5), place)
    assert names(tmp_path) == ["model"]
    assert names(place) == ["README.md", "config.json", "diffusion_pytorch_model.safetensors"]
    assert (place / "README.md").read_text() == "a card"
    assert load_autoencoder(place).config.scaling_factor == 0.5


def test_what_cannot_be_kept_leaves_everything_as_it_was(tmp_path):
    place = tmp_path / "model"
    write_model(make_kl(scaling_factor=0.25), place)
    before = {file.name: file.read_bytes() for file in place.iterdir()}
    broken = make_kl(scaling_factor=0.5)
    torch.nn.init.constant_(broken.quant_conv.weight, float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        write_model(broken, place)
    assert names(tmp_path) == ["model"]
    assert {file.name: file.read_bytes() for file in place.iterdir()} == before


def test_in_place_means_the_models_own_folder(tmp_path):
    make_kl().save_pretrained(tmp_path / "run/model")
    make_kl().save_pretrained(tmp_path / "pipeline/vae")
    for given, expected in {"run": "run/model", "pipeline": "pipeline/vae", "run/model": "run/model"}.items():
        assert choose_place(str(tmp_path / given), None, in_place=True) == tmp_path / expected


def test_in_place_loses_nothing(tmp_path):
    make_kl().save_pretrained(tmp_path)
    make_kl().save_pretrained(tmp_path, variant="fp16")
    (tmp_path / "notes").mkdir()
    with pytest.raises(ValueError, match=r"lose diffusion_pytorch_model\.fp16\.safetensors, notes in"):
        choose_place(str(tmp_path), None, in_place=True)


def test_places_that_will_not_do(tmp_path):
    assert choose_place("anything", None, in_place=False) is None
    for free in (tmp_path, tmp_path / "new"):
        assert choose_place("anything", free, in_place=False) == free
    for given in ("hub/id", str(tmp_path / "nowhere.safetensors")):
        with pytest.raises(ValueError, match=r"--in-place needs the folder of a model, and .* is none"):
            choose_place(given, None, in_place=True)
    with pytest.raises(ValueError, match="no model in"):
        choose_place(str(tmp_path), None, in_place=True)
    (tmp_path / "file.txt").write_text("")
    for taken in (tmp_path, tmp_path / "file.txt"):
        with pytest.raises(ValueError, match="is there already; choose a new folder"):
            choose_place("anything", taken, in_place=False)
