import json

import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import save_file

from latentae import KLVAE, VQGAN, VQVAE, load_autoencoder
from latentae.models import TinyAutoencoder
from latentae.models.checkpoints.layouts import to_ldm_names
from latentae.models.loading import is_single_file
from tests.models.checkpoints.examples import build, images_for

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def kl():
    return build(block_out_channels=(32, 64), layers_per_block=1, scaling_factor=0.5)


def test_our_own_folder(model, images, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = load_autoencoder(tmp_path)
    assert type(loaded) is type(model)
    assert not loaded.training
    assert torch.equal(loaded(images).sample, model(images).sample)
    assert dict(loaded.config)["num_vq_embeddings"] == 32


def test_a_stock_folder_opens_as_vqgan(model, images, tmp_path):
    model.to_diffusers().save_pretrained(tmp_path)
    loaded = load_autoencoder(tmp_path, torch_dtype=torch.float64)
    assert type(loaded) is VQGAN
    assert loaded.dtype == torch.float64
    torch.testing.assert_close(
        loaded(images.double()).sample.float(), model(images).sample, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("part", ["", "model", "vae", "vqvae"])
def test_a_run_or_a_pipeline(kl, tmp_path, part):
    kl.to_diffusers().save_pretrained(tmp_path / part)
    loaded = load_autoencoder(str(tmp_path))
    images = images_for(kl)
    assert type(loaded) is KLVAE
    assert loaded.config.scaling_factor == 0.5
    assert torch.equal(loaded(images).sample, kl(images).sample)
    if part:
        assert load_autoencoder(tmp_path, subfolder=part).config.scaling_factor == 0.5


def test_a_single_file(kl, tmp_path):
    state = {name: x.contiguous() for name, x in to_ldm_names(kl.state_dict()).items()}
    save_file(state, tmp_path / "vae.safetensors")
    torch.save({"state_dict": state}, tmp_path / "vae.ckpt")
    images = images_for(kl)
    for name in ("vae.safetensors", "vae.ckpt"):
        loaded = load_autoencoder(tmp_path / name)
        assert torch.equal(loaded(images).sample, kl(images).sample)
        assert (loaded.config.scaling_factor, loaded.training) == (None, False)
        named = load_autoencoder(tmp_path / name, family="sd1", torch_dtype=torch.bfloat16)
        assert (named.config.scaling_factor, named.dtype) == (0.18215, torch.bfloat16)
    with pytest.raises(ValueError, match=r"variant is 'fp16', but .* must be 'ema' or None"):
        load_autoencoder(tmp_path / "vae.ckpt", variant="fp16")
    with pytest.raises(ValueError, match=r"variant is 'ema', but .* have no average"):
        load_autoencoder(tmp_path / "vae.ckpt", variant="ema")
    with pytest.raises(ValueError, match=r"subfolder is 'vae', but .* is a file"):
        load_autoencoder(tmp_path / "vae.ckpt", subfolder="vae")


def test_the_weights_of_a_folder_come_with_its_config(tmp_path):
    model = build(block_out_channels=(8, 16), norm_num_groups=2, scaling_factor=0.5)
    model.save_pretrained(tmp_path, variant="ema")
    loaded = load_autoencoder(tmp_path / "diffusion_pytorch_model.ema.safetensors")
    assert (loaded.config.norm_num_groups, loaded.config.scaling_factor) == (2, 0.5)
    (tmp_path / "config.json").unlink()
    alone = load_autoencoder(tmp_path / "diffusion_pytorch_model.ema.safetensors")
    assert (alone.config.norm_num_groups, alone.config.scaling_factor) == (2, 0.5)


@pytest.mark.parametrize("variant", [None, "ema-2"])
def test_any_file_of_a_models_folder_opens_the_folder(variant, tmp_path):
    model = build(block_out_channels=(8, 16), norm_num_groups=2, scaling_factor=0.5)
    model.save_pretrained(tmp_path, variant=variant, max_shard_size="50KB")
    files = sorted(tmp_path.iterdir())
    assert len(files) > 3
    for file in files:
        loaded = load_autoencoder(file, variant=variant if file.name == "config.json" else None)
        assert loaded.config.norm_num_groups == 2
        assert torch.equal(loaded.decoder.conv_out.weight, model.decoder.conv_out.weight)


def test_dtype_and_its_older_name(kl, tmp_path):
    kl.save_pretrained(tmp_path / "model")
    save_file(kl.state_dict(), tmp_path / "vae.safetensors")
    for place in (tmp_path / "model", tmp_path / "vae.safetensors"):
        assert load_autoencoder(place).dtype == torch.float32
        for names in (["dtype"], ["torch_dtype"], ["dtype", "torch_dtype"]):
            assert load_autoencoder(place, **dict.fromkeys(names, torch.float16)).dtype == torch.float16


def test_a_tiny_autoencoder(tmp_path):
    AutoencoderTiny().save_pretrained(tmp_path)
    loaded = load_autoencoder(tmp_path)
    assert type(loaded) is TinyAutoencoder
    assert loaded(torch.zeros(1, 3, 20, 20)).sample.shape == (1, 3, 20, 20)


def test_a_repository_in_the_cache(kl, tmp_path):
    repository = tmp_path / "models--owner--name"
    kl.to_diffusers().save_pretrained(repository / "snapshots" / COMMIT / "vae")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    options = {"cache_dir": str(tmp_path), "local_files_only": True}
    assert load_autoencoder("owner/name", **options).config.scaling_factor == 0.5
    with pytest.raises(
        ValueError, match=r"'owner/other' is no path here, and no autoencoder could be fetched"
    ):
        load_autoencoder("owner/other", **options)


@pytest.mark.parametrize("path", ["weights/vae.ckpt", "vae.safetensors", "a/b/c", "", "../no/x"])
def test_no_such_path(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"there is no file or folder|no config"):
        load_autoencoder(path)


def test_a_path_object_is_no_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"there is no file or folder owner"):
        load_autoencoder(tmp_path.relative_to(tmp_path) / "owner" / "name")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"family": "sd15"}, "family is 'sd15', but must be one of sd1, sdxl, sd3, flux"),
        ({"torch_dtype": "float16"}, "torch_dtype is 'float16', but must be a floating-point"),
        ({"torch_dtype": torch.int8}, r"torch_dtype is torch\.int8"),
        ({"dtype": torch.int8}, r"dtype is torch\.int8"),
        ({"norm_num_groups": 0}, "norm_num_groups is 0, but must be a positive integer"),
        ({"norm_num_groups": "16"}, "norm_num_groups is '16'"),
        (
            {"dtype": torch.float16, "torch_dtype": torch.float32},
            r"dtype is torch\.float16, and its older name",
        ),
    ],
)
def test_arguments_are_checked_first(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_autoencoder(tmp_path / "nothing", **arguments)


def test_nothing_there(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json"):
        load_autoencoder(tmp_path)


def test_a_path_that_is_too_long_for_the_file_system():
    with pytest.raises(ValueError, match=r"a\.\.\. cannot be a path here: File name too long"):
        load_autoencoder("a" * 300)


def test_a_model_of_another_kind(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(ValueError, match=r"describes a UNet2DModel"):
        load_autoencoder(tmp_path)


def test_classes_are_recorded_under_the_package():
    assert KLVAE.__module__ == VQGAN.__module__ == VQVAE.__module__ == "latentae"


def test_which_files_no_config_describes(kl, tmp_path):
    kl.to_diffusers().save_pretrained(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    assert not is_single_file(weights)
    assert not is_single_file(tmp_path)
    assert not is_single_file("owner/name")
    weights.rename(tmp_path / "vae.safetensors")
    assert not is_single_file(tmp_path / "vae.safetensors")
    (tmp_path / "config.json").unlink()
    assert is_single_file(tmp_path / "vae.safetensors")
    kl.save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    assert not is_single_file(weights)  # its metadata have the config
