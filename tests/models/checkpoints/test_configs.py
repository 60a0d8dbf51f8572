import json
import logging
import shutil

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from latentae import KLVAE, VQGAN, VQVAE, load_autoencoder
from latentae.models import TinyAutoencoder
from latentae.models.checkpoints.configs import (
    CONFIG_KEY,
    check_weights,
    config_in,
    embed_config,
    find_model_folder,
    read_config,
    stock_meaning,
)
from latentae.models.checkpoints.layouts import to_ldm_names
from tests.models.checkpoints.examples import build, images_for

SMALL = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8}


@pytest.fixture
def model():
    return build(**SMALL, scaling_factor=0.5, shift_factor=0.25, sample_size=48)


def _metadata(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def _is_the_same(opened, model):
    images = images_for(model)
    assert torch.equal(opened(images).sample, model(images).sample)
    return opened.config.norm_num_groups == model.config.norm_num_groups


@pytest.mark.parametrize(
    "changes",
    [
        {"class": KLVAE, "scaling_factor": 0.5, "act_fn": "gelu"},
        {"class": VQVAE, "quantizer": {"type": "ema"}},
        {"class": VQGAN, "quantizer": {"type": "fsq", "levels": [5, 3, 4]}, "latent_channels": 3},
        {"class": VQVAE, "backbone": "2017", "norm_num_groups": 1},
    ],
)
def test_a_file_alone_is_the_model(changes, tmp_path, caplog):
    model = build(**{**SMALL, **changes})
    model.save_pretrained(tmp_path / "model")
    path = shutil.move(tmp_path / "model/diffusion_pytorch_model.safetensors", tmp_path / "mine.safetensors")
    opened = load_autoencoder(path)
    assert type(opened) is changes["class"]
    assert _is_the_same(opened, model)
    shown = {name: value for name, value in model.config.items() if name[0] != "_"}
    assert json.dumps({name: opened.config[name] for name in shown}, sort_keys=True) == json.dumps(
        shown, sort_keys=True
    )
    assert caplog.records == []


def test_arguments_come_before_the_config(model, tmp_path):
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    config = load_autoencoder(path, norm_num_groups=4, scaling_factor=2.0).config
    assert (config.norm_num_groups, config.scaling_factor, config.shift_factor) == (4, 2.0, 0.25)
    config = load_autoencoder(path, family="sd1").config
    assert (config.scaling_factor, config.shift_factor, config.norm_num_groups) == (0.18215, 0.0, 8)


def test_the_config_beside_a_file_of_another_name(model, tmp_path):
    model.to_diffusers().save_pretrained(tmp_path)  # by diffusers, without a config in the metadata
    state = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    save_file(state, tmp_path / "mine.safetensors")
    save_file({k: x.contiguous() for k, x in to_ldm_names(state).items()}, tmp_path / "ldm.safetensors")
    torch.save({"model": state}, tmp_path / "last.pt")
    for name in ("mine.safetensors", "ldm.safetensors", "last.pt"):
        opened = load_autoencoder(tmp_path / name)
        assert _is_the_same(opened, model)
        assert opened.config.scaling_factor == 0.5


@pytest.mark.parametrize("config", [{"_class_name": "UNet2DModel"}, {"model_type": "clip"}, []])
def test_a_config_of_something_else_is_left_alone(model, tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), tmp_path / "mine.safetensors")
    assert load_autoencoder(tmp_path / "mine.safetensors").config.norm_num_groups == 32


def test_a_config_of_another_model_is_named_and_left_alone(model, tmp_path, caplog):
    build(block_out_channels=(64, 64), norm_num_groups=8).save_pretrained(tmp_path)
    save_file(model.state_dict(), tmp_path / "mine.safetensors")
    assert load_autoencoder(tmp_path / "mine.safetensors", norm_num_groups=8).config.norm_num_groups == 8
    assert "mine.safetensors is not described by config.json beside it" in caplog.text


def test_a_file_s_own_config_comes_before_the_one_beside_it(model, tmp_path):
    model.save_pretrained(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").rename(tmp_path / "mine.safetensors")
    build(**{**SMALL, "norm_num_groups": 2}).save_pretrained(tmp_path)
    assert _is_the_same(load_autoencoder(tmp_path / "mine.safetensors"), model)


def test_what_is_written(model, tmp_path):
    model.save_pretrained(tmp_path, variant="ema")
    path = tmp_path / "diffusion_pytorch_model.ema.safetensors"
    written = _metadata(path)
    assert written.keys() == {"format", CONFIG_KEY}
    config = config_in(written)
    assert (config["_class_name"], config["norm_num_groups"]) == ("KLVAE", 8)
    assert "_name_or_path" not in config
    state = load_file(path)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert [file.name for file in tmp_path.iterdir() if file.suffix == ".safetensors"] == [path.name]
    before = path.stat().st_mtime_ns, path.read_bytes()
    embed_config(tmp_path)  # again: nothing is to be done
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before
    assert AutoencoderKL.from_pretrained(tmp_path, variant="ema").config.norm_num_groups == 8


def test_a_rewritten_file_keeps_its_permissions(model, tmp_path):
    model.to_diffusers().save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    path.chmod(0o640)
    embed_config(tmp_path)
    assert CONFIG_KEY in _metadata(path)
    assert path.stat().st_mode & 0o777 == 0o640


def test_shards_and_pickles_are_left_as_they_are(model, tmp_path):
    model.save_pretrained(tmp_path / "shards", max_shard_size="200KB")
    shards = list((tmp_path / "shards").glob("*-of-*.safetensors"))
    assert len(shards) > 1
    assert all(_metadata(shard) == {"format": "pt"} for shard in shards)
    assert _is_the_same(load_autoencoder(tmp_path / "shards"), model)
    model.save_pretrained(tmp_path / "pickle", safe_serialization=False)
    assert _is_the_same(load_autoencoder(tmp_path / "pickle"), model)


def test_a_disk_that_is_full(model, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text().replace("48", "64"))
    monkeypatch.setattr(shutil, "copyfileobj", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="no space left to write"):
        embed_config(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == before.keys()
    name = "diffusion_pytorch_model.safetensors"
    assert (tmp_path / name).read_bytes() == before[name]


@pytest.mark.parametrize(("text", "message"), [("{", "is not valid JSON"), ("[1]", "is a list")])
def test_metadata_that_are_no_config(model, tmp_path, text, message):
    save_file(model.state_dict(), tmp_path / "mine.safetensors", metadata={CONFIG_KEY: text})
    with pytest.raises(ValueError, match=rf"mine\.safetensors: {CONFIG_KEY} in the metadata {message}"):
        load_autoencoder(tmp_path / "mine.safetensors")


def test_a_tiny_autoencoder(tmp_path):
    TinyAutoencoder(scaling_factor=0.5).save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    opened = load_autoencoder(tmp_path / "diffusion_pytorch_model.safetensors")
    assert (type(opened), opened.config.scaling_factor) == (TinyAutoencoder, 0.5)


def test_a_broken_config_beside_a_file_is_said(model, tmp_path, caplog):
    (tmp_path / "config.json").write_text("{")
    save_file(model.state_dict(), tmp_path / "mine.safetensors")
    with caplog.at_level(logging.WARNING):
        load_autoencoder(tmp_path / "mine.safetensors")
    assert "is not valid JSON" in caplog.text


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


@pytest.mark.parametrize(("text", "message"), [("{", "is not valid JSON"), ("[1]", "is a list")])
def test_configs_that_are_none(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_config(_put(tmp_path, text))
    assert read_config(_put(tmp_path, '{"a": 1}')) == {"a": 1}


def test_weights_of_a_folder(tmp_path):
    with pytest.raises(ValueError, match=r"holds no plain weights, .*there is no such file"):
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
