import json

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors.torch import load_file, save_file

from latentae import KLVAE
from latentae.models import TinyAutoencoder
from latentae.models.checkpoints.folders import read_config
from latentae.models.checkpoints.pretrained import fetch_config, load_pretrained
from tests.models.checkpoints.examples import build, images_for

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SMALL = {"block_out_channels": (32, 64), "layers_per_block": 1}


def _load(folder, **arguments):
    return load_pretrained(str(folder), read_config(folder), **arguments)


def _edit(folder, **changes):
    config = read_config(folder)
    (folder / "config.json").write_text(
        json.dumps({name: x for name, x in {**config, **changes}.items() if x is not ...})
    )


@pytest.fixture
def folder(tmp_path):
    build(**SMALL, scaling_factor=0.5).to_diffusers().save_pretrained(tmp_path)
    return tmp_path


def test_a_stock_folder(folder):
    model = build(**SMALL)
    loaded = _load(folder)
    assert type(loaded) is KLVAE
    assert not loaded.training
    assert loaded.config.scaling_factor == 0.5
    images = images_for(model)
    assert torch.equal(loaded(images).sample, model(images).sample)


def test_what_an_early_config_leaves_out_is_the_stock_default(folder):
    _edit(folder, scaling_factor=..., shift_factor=..., force_upcast=...)
    loaded, stock = _load(folder).config, AutoencoderKL.from_pretrained(folder).config
    assert loaded.scaling_factor == stock.scaling_factor == 0.18215
    assert loaded.force_upcast == stock.force_upcast is True
    assert (loaded.shift_factor, stock.shift_factor) == (0.0, None)  # SD3 pipelines calculate with it


def test_our_own_config_leaves_out_our_defaults(folder):
    _edit(folder, _class_name="KLVAE", scaling_factor=...)
    assert _load(folder).config.scaling_factor == 1.0


def test_an_unknown_scale_stays_unknown(folder):
    _edit(folder, scaling_factor=None)
    assert _load(folder).config.scaling_factor is None


def test_arguments_take_the_place_of_the_config(folder):
    _edit(folder, latents_mean=[0.0] * 4, latents_std=[2.0] * 4)
    config = _load(folder, family="sd1").config
    assert (config.scaling_factor, config.latents_mean, config.latents_std) == (0.18215, None, None)
    loaded = _load(folder, scaling_factor=3.0, torch_dtype=torch.float64)
    assert (loaded.config.scaling_factor, loaded.dtype) == (3.0, torch.float64)
    with pytest.raises(ValueError, match=r"family is 'flux', whose latents have 16 channels"):
        _load(folder, family="flux")
    with pytest.raises(ValueError, match=r"torch_type: no argument of AutoencoderKL, nor of from_pretrained"):
        _load(folder, torch_type=torch.float16)


def test_a_variant(folder):
    weights = load_file(folder / "diffusion_pytorch_model.safetensors")
    other = {name: x * 2 for name, x in weights.items()}
    save_file(other, folder / "diffusion_pytorch_model.fp16.safetensors")
    assert torch.equal(_load(folder, variant="fp16").decoder.conv_in.weight, other["decoder.conv_in.weight"])
    with pytest.raises(ValueError, match=r"no weights of variant 'ema'"):
        _load(folder, variant="ema")


def test_weights_that_are_not_whole(folder):
    path = folder / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    save_file({name: x for name, x in weights.items() if name != "encoder.conv_in.bias"}, path)
    with pytest.raises(ValueError, match=r"lack 1 tensors, such as encoder\.conv_in\.bias"):
        _load(folder)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"is cut off"):
        _load(folder)
    save_file({**weights, "encoder.conv_in.weight": torch.zeros(1, 1, 1, 1)}, path)
    with pytest.raises(ValueError, match=r"cannot be loaded: .*conv_in\.weight"):
        _load(folder)


@pytest.mark.parametrize("name", ["UNet2DModel", "AutoencoderKLWan", None])
def test_a_class_that_is_no_autoencoder_of_ours(folder, name):
    with pytest.raises(ValueError, match=f"describes a {name}, but must be one of KLVAE, AutoencoderKL"):
        load_pretrained(str(folder), {"_class_name": name})


def test_a_tiny_autoencoder(tmp_path):
    torch.manual_seed(0)
    stock = AutoencoderTiny().eval()
    stock.save_pretrained(tmp_path)
    loaded = _load(tmp_path)
    assert type(loaded) is TinyAutoencoder
    images = images_for(loaded)
    assert torch.equal(loaded(images).sample, stock.decode(stock.encode(images).latents).sample)
    with pytest.raises(ValueError, match=r"latents of an AutoencoderTiny are scaled already"):
        _load(tmp_path, family="sd1")


def _cache(tmp_path, part):
    """The hub's cache with a repository in it."""
    repository = tmp_path / "models--owner--name"
    build(**SMALL).to_diffusers().save_pretrained(repository / "snapshots" / COMMIT / part)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return {"cache_dir": str(tmp_path), "local_files_only": True}


@pytest.mark.parametrize(
    ("part", "subfolder"), [("", None), ("vae", None), ("vqvae", None), ("mine", "mine")]
)
def test_a_repository_in_the_cache(tmp_path, part, subfolder):
    options = _cache(tmp_path, part)
    config, found = fetch_config("owner/name", subfolder, options)
    assert (config["_class_name"], found) == ("AutoencoderKL", part or None)
    loaded = load_pretrained("owner/name", config, subfolder=found, **options)
    images = images_for(loaded)
    assert torch.equal(loaded(images).sample, build(**SMALL)(images).sample)


def test_a_repository_that_is_not_there(tmp_path):
    options = _cache(tmp_path, "unet")
    with pytest.raises(ValueError, match=r"'owner/name' is no path here, and no .* hub cannot be reached"):
        fetch_config("owner/name", None, options)


@pytest.mark.parametrize(
    ("name", "value"),
    [("norm_num_groups", 0), ("block_out_channels", 32), ("layers_per_block", "2"), ("act_fn", None)],
)
def test_a_config_whose_values_cannot_be_a_models(name, value, tmp_path):
    build(**SMALL).save_pretrained(tmp_path)
    _edit(tmp_path, **{name: value})
    with pytest.raises(ValueError, match="cannot be loaded"):
        _load(tmp_path)
