import json

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file

from latentae.models.checkpoints.folders import check_weights, find_model_folder, read_config, stock_meaning


def _put(folder, text="{}"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(text)
    return folder


@pytest.mark.parametrize("part", [".", "model", "vae", "vqvae", "movq"])
def test_where_the_model_is(tmp_path, part):
    assert find_model_folder(_put(tmp_path / part) and tmp_path) == tmp_path / part


def test_the_folder_itself_comes_first_and_a_subfolder_can_be_named(tmp_path):
    _put(tmp_path)
    other = _put(tmp_path / "vae")
    assert find_model_folder(tmp_path) == tmp_path
    assert find_model_folder(tmp_path, "vae") == other
    with pytest.raises(
        ValueError, match=r"no model in .*unet: no config\.json there\. There is no such folder"
    ):
        find_model_folder(tmp_path, "unet")


def test_advice(tmp_path):
    with pytest.raises(ValueError, match=r"A run's model is in <output_dir>/model"):
        find_model_folder(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match=r"a run that has not written its model yet"):
        find_model_folder(tmp_path)
    (tmp_path / "last.ckpt").touch()
    with pytest.raises(ValueError, match=r"To read last\.ckpt, name the file itself"):
        find_model_folder(tmp_path)


@pytest.mark.parametrize(("text", "message"), [("{", "is no JSON"), ("[1]", "holds a list")])
def test_configs_that_are_none(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_config(_put(tmp_path, text))
    assert read_config(_put(tmp_path, '{"a": 1}')) == {"a": 1}


def test_weights_of_a_folder(tmp_path):
    with pytest.raises(ValueError, match=r"holds no plain weights, .*there is no file named so"):
        check_weights(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    save_file({"weight": torch.zeros(100)}, path)
    check_weights(tmp_path)
    with pytest.raises(
        ValueError, match=r"no weights of variant 'fp16', .*there is diffusion_pytorch_model.safe"
    ):
        check_weights(tmp_path, "fp16")
    path.rename(tmp_path / "diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(ValueError, match=r"no plain weights, .*there is diffusion_pytorch_model\.fp16"):
        check_weights(tmp_path)
    check_weights(tmp_path, "fp16")
    save_file({"weight": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"is cut off"):
        check_weights(tmp_path)


def test_a_config_means_what_its_class_takes_it_to_mean():
    assert stock_meaning({"latent_channels": 4}, AutoencoderKL) | {"sample_size": 0} == {
        **{
            name: x
            for name, x in AutoencoderKL().config.items()
            if name[0] != "_" and name != "latent_channels"
        },
        "shift_factor": 0.0,
        "sample_size": 0,
    }
    whole = dict(AutoencoderKL(scaling_factor=0.5, shift_factor=0.25).config)
    assert stock_meaning(json.loads(json.dumps(whole)), AutoencoderKL) == {}
    assert stock_meaning({**whole, "shift_factor": None, "scaling_factor": None}, AutoencoderKL) == {
        "shift_factor": 0.0
    }
