import json

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors.torch import load_file, save_file

from latentae import KLVAE, VQGAN
from latentae.models import TinyAutoencoder
from latentae.models.checkpoints.configs import read_config
from latentae.models.checkpoints.layouts import to_ldm_names
from latentae.models.checkpoints.open import fetch_config, load_pretrained, load_single_file
from tests.models.checkpoints.examples import ARCHITECTURES, build, images_for

UNET = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


def _contiguous(state):
    return {name: tensor.contiguous() for name, tensor in state.items()}


@pytest.fixture(scope="module")
def model():
    return build(block_out_channels=(32, 32, 64, 64), layers_per_block=1)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_same_pixels_from_ldm_layout(name, tmp_path):
    model = build(**ARCHITECTURES[name])
    path = tmp_path / "vae.safetensors"
    save_file(_contiguous(to_ldm_names(model.state_dict())), path)
    groups = model.config.norm_num_groups
    loaded = load_single_file(path, **({} if groups == 32 else {"norm_num_groups": groups}))
    assert type(loaded) is type(model)
    assert not loaded.training
    assert loaded.config.scaling_factor is None
    images = images_for(model)
    assert torch.equal(loaded(images).sample, model(images).sample)
    assert torch.equal(loaded.encode(images).latents, model.encode(images).latents)
    if type(model) is VQGAN:
        assert torch.equal(loaded.encode_indices(images), model.encode_indices(images))
    with pytest.raises(ValueError, match=r"not known.*latent_stats"):
        loaded.to_latents(images)


@pytest.mark.parametrize("name", ["VQ f16 with level attention", "KL f8 without quant convs"])
def test_the_same_pixels_from_diffusers_layout(name, tmp_path):
    model = build(**ARCHITECTURES[name])
    model.to_diffusers().save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    loaded = load_single_file(tmp_path / "diffusion_pytorch_model.safetensors")
    images = images_for(model)
    assert torch.equal(loaded(images).sample, model(images).sample)


@pytest.mark.parametrize(
    ("width", "scale", "side"), [(768, 0.18215, 512), (2048, 0.13025, 1024), (640, None, 256)]
)
@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_inside_a_whole_checkpoint(model, tmp_path, width, scale, side, suffix):
    stored = {
        f"first_stage_model.{name}": x for name, x in _contiguous(to_ldm_names(model.state_dict())).items()
    }
    stored |= {UNET: torch.zeros(320, width), "cond_stage_model.transformer.x": torch.zeros(2)}
    path = tmp_path / f"sd.{suffix}"
    save_file(stored, path) if suffix == "safetensors" else torch.save({"state_dict": stored}, path)
    loaded = load_single_file(path)
    assert type(loaded) is KLVAE
    assert (loaded.config.scaling_factor, loaded.config.sample_size) == (scale, side)
    images = images_for(model)
    assert torch.equal(loaded(images).sample, model(images).sample)


def test_a_taming_checkpoint(tmp_path):
    model = build(**ARCHITECTURES["VQ f16 with level attention"])
    stored = {
        **to_ldm_names(model.state_dict()),
        "loss.perceptual_loss.lin0.model.1.weight": torch.zeros(1, 64, 1, 1),
        "loss.discriminator.main.0.weight": torch.zeros(64, 3, 4, 4),
        "quantize.embedding.cluster_size": torch.zeros(64),
    }
    torch.save({"state_dict": stored, "epoch": 1}, tmp_path / "last.ckpt")
    loaded = load_single_file(tmp_path / "last.ckpt")
    images = images_for(model)
    assert torch.equal(loaded(images).sample, model(images).sample)


def test_normalisation_from_the_metadata_and_by_name(model, tmp_path):
    path = tmp_path / "vae.safetensors"
    metadata = {"latentae.scaling_factor": "0.75", "latentae.shift_factor": "0.5"}
    save_file(_contiguous(to_ldm_names(model.state_dict())), path, metadata=metadata)
    images = images_for(model)
    loaded = load_single_file(path)
    noise = [torch.Generator().manual_seed(3) for _ in range(2)]
    expected = (model.encode(images).latent_dist.sample(noise[0]) - 0.5) * 0.75
    torch.testing.assert_close(loaded.to_latents(images, generator=noise[1]), expected)
    named = load_single_file(path, family="sdxl").config
    assert (named.scaling_factor, named.shift_factor, named.sample_size) == (0.13025, 0.0, 1024)
    assert load_single_file(path, scaling_factor=2.0).config.scaling_factor == 2.0


@pytest.mark.parametrize("stored", [torch.float16, torch.float64])
def test_dtype(model, tmp_path, stored):
    path = tmp_path / "vae.safetensors"
    state = {name: x.to(stored) for name, x in _contiguous(to_ldm_names(model.state_dict())).items()}
    save_file(state, path)
    assert load_single_file(path).dtype == torch.float32
    loaded = load_single_file(path, torch_dtype=torch.bfloat16)
    assert {x.dtype for x in loaded.state_dict().values()} == {torch.bfloat16}
    exact = load_single_file(path, torch_dtype=stored).state_dict()
    assert all(torch.equal(exact[name], x.to(stored)) for name, x in model.state_dict().items())


def test_averaged_weights(model, tmp_path):
    state = to_ldm_names(model.state_dict())
    averages = {f"model_ema.{name.replace('.', '')}": x * 0.5 for name, x in state.items()}
    torch.save({"state_dict": {**state, **averages}}, tmp_path / "vae.ckpt")
    plain, averaged = (load_single_file(tmp_path / "vae.ckpt", ema=ema) for ema in (False, True))
    assert torch.equal(plain.decoder.conv_in.weight, model.decoder.conv_in.weight)
    assert torch.equal(averaged.decoder.conv_in.weight, model.decoder.conv_in.weight * 0.5)


def test_groups_that_the_caller_knows(tmp_path):
    model = build(block_out_channels=(8, 16), norm_num_groups=2)
    save_file(_contiguous(to_ldm_names(model.state_dict())), tmp_path / "vae.safetensors")
    images = images_for(model)
    told = load_single_file(tmp_path / "vae.safetensors", norm_num_groups=2)
    assert torch.equal(told(images).sample, model(images).sample)
    with pytest.raises(ValueError, match=r"vae\.safetensors: does not tell how many groups"):
        load_single_file(tmp_path / "vae.safetensors")


def test_a_guess_is_said(tmp_path, caplog):
    model = build(block_out_channels=(32, 64), layers_per_block=1)
    path = tmp_path / "vae.safetensors"
    save_file(model.state_dict(), path)
    load_single_file(path)
    (record,) = caplog.records
    assert f"{path} does not tell how many groups" in record.getMessage()
    assert "[32, 64]" in record.getMessage()
    caplog.clear()
    load_single_file(path, norm_num_groups=16)
    save_file(_contiguous(to_ldm_names(model.state_dict())), path)  # whose code has 32 groups
    load_single_file(path)
    assert caplog.records == []


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda s: s.pop("decoder.norm_out.bias"),
            r"lacks 1 tensors of a KLVAE, such as decoder\.conv_norm_out\.bias",
        ),
        (
            lambda s: s.update(extra=torch.zeros(1)),
            "holds 1 tensors that a KLVAE does not have, such as extra",
        ),
        (
            lambda s: s.update({"quant_conv.weight": torch.zeros(6, 8, 1, 1)}),
            r"holds quant_conv\.weight of shape \[6, 8, 1, 1\], but .* fits a KLVAE with \[8, 8, 1, 1\]",
        ),
    ],
)
def test_tensors_that_do_not_fit(model, tmp_path, spoil, message):
    state = _contiguous(to_ldm_names(model.state_dict()))
    spoil(state)
    save_file(state, tmp_path / "vae.safetensors")
    with pytest.raises(ValueError, match=rf"vae\.safetensors: {message}"):
        load_single_file(tmp_path / "vae.safetensors")


def test_an_argument_that_no_file_takes(model, tmp_path):
    save_file(_contiguous(to_ldm_names(model.state_dict())), tmp_path / "vae.safetensors")
    with pytest.raises(
        ValueError, match="device_map, norm_groups: no argument of KLVAE, nor one for a single"
    ):
        load_single_file(tmp_path / "vae.safetensors", norm_groups=4, device_map="auto")


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


@pytest.mark.parametrize("name", ["UNet2DModel", "PNDMScheduler", None])
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
