"""The VAE of FLUX.2 against diffusers' class, and its files."""

import json

import pytest
import torch
from diffusers import AutoencoderKLFlux2
from diffusers.pipelines.flux2.pipeline_flux2 import Flux2Pipeline
from safetensors.torch import load_file, save_file

from latentae import KLVAE, Flux2VAE, load_autoencoder
from latentae.export import export_autoencoder
from latentae.latents.calibration import calibrate
from latentae.latents.statistics import LatentStatistics
from latentae.models.checkpoints.layouts import to_flux2_names
from latentae.probe.pipeline import pipeline_autoencoder


def make_flux2(**changes):
    """A model of two levels with random statistics, in 32 groups, as single files want."""
    arguments = {
        "block_out_channels": (32, 64),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "layers_per_block": 1,
        "latent_channels": 4,
        "sample_size": 32,
    }
    torch.manual_seed(3)
    model = Flux2VAE(**{**arguments, **changes}).eval()
    channels = 4 * model.config.latent_channels
    model.set_statistics(torch.randn(channels), torch.rand(channels) + 0.5)
    return model


@pytest.fixture
def flux2():
    return make_flux2()


@pytest.fixture
def images():
    return torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1


def same(first, second):
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def seen_by_a_denoiser(stock, images):
    """What diffusers' own pipeline makes of images."""
    stand_in = type("StandIn", (), {})()
    stand_in.vae, stand_in._patchify_latents = stock, Flux2Pipeline._patchify_latents
    return Flux2Pipeline._encode_vae_image(stand_in, images, None)


@torch.no_grad()
def test_it_computes_what_the_stock_class_and_pipeline_compute(flux2, images):
    stock = flux2.to_diffusers()
    assert type(stock) is AutoencoderKLFlux2
    assert same(stock, flux2)
    ours, theirs = flux2.encode(images).latent_dist, stock.encode(images).latent_dist
    assert torch.equal(ours.mean, theirs.mean)
    assert torch.equal(ours.std, theirs.std)
    assert torch.equal(flux2.decode(ours.mean).sample, stock.decode(theirs.mean).sample)
    latents = flux2.to_latents(images)
    assert latents.shape == (2, 16, 4, 6)
    assert torch.equal(latents, seen_by_a_denoiser(stock, images))
    torch.testing.assert_close(flux2.from_latents(latents), flux2(images).sample, atol=1e-5, rtol=0)
    unpatched = Flux2Pipeline._unpatchify_latents(latents)
    assert torch.equal(flux2.arrange(unpatched), latents)


@torch.no_grad()
def test_a_generator_draws_a_sample(flux2, images):
    latents = flux2.to_latents(images, torch.Generator().manual_seed(5))
    sample = flux2.encode(images).latent_dist.sample(torch.Generator().manual_seed(5))
    std = (flux2.bn.running_var + flux2.config.batch_norm_eps).sqrt()[:, None, None]
    expected = (torch.nn.functional.pixel_unshuffle(sample, 2) - flux2.bn.running_mean[:, None, None]) / std
    torch.testing.assert_close(latents, expected, atol=1e-6, rtol=0)


@torch.no_grad()
def test_sizes_are_padded_to_whole_patches(flux2, images):
    odd = images[..., :14, :21]
    latents = flux2.to_latents(odd)
    assert latents.shape == (2, 16, 4, 6)
    padded = torch.nn.functional.pad(odd, (0, 3, 0, 2), mode="replicate")
    assert torch.equal(latents, flux2.to_latents(padded))
    assert flux2.from_latents(latents, size=(14, 21)).shape == odd.shape
    assert flux2(odd).sample.shape == odd.shape


@torch.no_grad()
def test_half_precision_slices_and_tiles(flux2, images):
    half = make_flux2().to(torch.bfloat16)
    assert half.to_latents(images.bfloat16()).dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"float32 and the Flux2VAE is bfloat16"):
        half.to_latents(images)
    whole = flux2.to_latents(images)
    flux2.enable_slicing()
    torch.testing.assert_close(flux2.to_latents(images), whole, atol=1e-5, rtol=0)
    flux2.enable_tiling()
    assert flux2(torch.zeros(1, 3, 64, 80)).sample.shape == (1, 3, 64, 80)


def test_training_does_not_move_the_statistics(flux2, images):
    before = flux2.bn.running_mean.clone()
    flux2.train()(images).sample.sum().backward()
    assert torch.equal(flux2.bn.running_mean, before)
    flux2.pin_posterior()
    assert flux2.encode(images).latent_dist.logvar.unique().tolist() == [-30.0]


@pytest.mark.parametrize("decoder", [None, (32, 32)])
def test_folders_load_with_either_class(tmp_path, decoder):
    model = make_flux2(decoder_block_out_channels=decoder, batch_norm_eps=1e-3)
    model.save_pretrained(tmp_path / "pipeline/vae")
    config = json.loads((tmp_path / "pipeline/vae/config.json").read_text())
    assert config["_class_name"] == "AutoencoderKLFlux2"
    assert "scaling_factor" not in config
    assert same(AutoencoderKLFlux2.from_pretrained(tmp_path / "pipeline/vae"), model)
    opened = load_autoencoder(tmp_path / "pipeline")
    assert type(opened) is Flux2VAE
    assert same(opened, model)
    assert opened.config.batch_norm_eps == 1e-3
    model.to_diffusers().save_pretrained(tmp_path / "stock")
    assert same(load_autoencoder(tmp_path / "stock"), model)


@pytest.mark.parametrize("decoder", [None, (32, 32)])
@pytest.mark.parametrize("form", ["original", "in a checkpoint", "diffusers' names", "no counter"])
@torch.no_grad()
def test_single_files(tmp_path, images, form, decoder):
    model = make_flux2(decoder_block_out_channels=decoder)
    state = model.state_dict() if form == "diffusers' names" else to_flux2_names(model.state_dict())
    if form == "no counter":
        del state["bn.num_batches_tracked"]
    if form == "in a checkpoint":
        state = {f"vae.{name}": value for name, value in state.items()}
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "ae.safetensors")
    opened = load_autoencoder(tmp_path / "ae.safetensors")
    assert type(opened) is Flux2VAE
    assert opened.config.decoder_block_out_channels == decoder
    assert torch.equal(opened.to_latents(images), model.to_latents(images))
    assert torch.equal(opened(images).sample, model(images).sample)


def test_exports(tmp_path, flux2):
    report = export_autoencoder(flux2, tmp_path / "folder", format="diffusers")
    assert report.max_error == 0
    assert "AutoencoderKLFlux2" in report.load_hint
    assert same(AutoencoderKLFlux2.from_pretrained(tmp_path / "folder"), flux2)
    report = export_autoencoder(flux2, tmp_path / "ae.safetensors", format="ldm")
    assert report.max_error == 0
    names = load_file(tmp_path / "ae.safetensors").keys()
    nested = {"encoder.quant_conv.weight", "decoder.post_quant_conv.bias", "bn.num_batches_tracked"}
    assert nested <= names
    assert "quant_conv.weight" not in names
    export_autoencoder(flux2, tmp_path / "half.safetensors", format="ldm", dtype="fp16")
    stored = load_file(tmp_path / "half.safetensors")
    assert stored["bn.num_batches_tracked"].dtype == torch.int64


@pytest.mark.parametrize(
    ("shape", "problem"),
    [
        ({"upscale": 2}, "images are 2 times as large"),
        ({"decoder_layers_per_block": 2}, "another depth"),
        ({"decoder_block_out_channels": (32, 32), "decoder_layers_per_block": 2}, "another depth"),
    ],
)
@torch.no_grad()
def test_decoders_that_the_stock_class_cannot_hold(tmp_path, images, shape, problem):
    model = make_flux2(**shape)
    assert problem in model.stock_objection
    assert "AutoencoderKLFlux2 cannot hold" in model.stock_objection
    model.save_pretrained(tmp_path / "own")
    config = json.loads((tmp_path / "own/config.json").read_text())
    assert config["_class_name"] == "Flux2VAE"
    assert "latentae.load_autoencoder" in config["_requires"]
    opened = load_autoencoder(tmp_path / "own")
    assert type(opened) is Flux2VAE
    assert same(opened, model)
    side = shape.get("upscale", 1)
    assert opened(images).sample.shape == (2, 3, 16 * side, 24 * side)
    assert torch.equal(opened(images).sample, model(images).sample)
    with pytest.raises(ValueError, match=problem):
        model.to_diffusers()
    with pytest.raises(ValueError, match=problem):
        export_autoencoder(model, tmp_path / "stock", format="diffusers")
    # An encoder of the same weights: the latents do not depend on the decoder.
    assert torch.equal(opened.to_latents(images), model.to_latents(images))


def test_arguments_that_change_nothing_are_forgotten():
    usual, named = make_flux2(), make_flux2(decoder_layers_per_block=1, upscale=1)
    assert same(usual, named)
    assert usual.stock_objection is None
    assert {"upscale", "decoder_layers_per_block"}.isdisjoint(named.config)
    assert named.config.decoder_block_out_channels is None


def test_what_cannot_hold_it_says_so(tmp_path, flux2):
    with pytest.raises(
        ValueError, match=r"ComfyUI cannot hold this .* as flux: a FLUX\.2 VAE.*format ldm has"
    ):
        export_autoencoder(flux2, tmp_path / "a.safetensors", format="comfyui", family="flux")
    with pytest.raises(ValueError, match=r"family is 'flux'.*leave family out"):
        export_autoencoder(flux2, tmp_path / "a.safetensors", format="ldm", family="flux")
    with pytest.raises(ValueError, match=r"DiTPipeline cannot undo"):
        pipeline_autoencoder(flux2)
    with pytest.raises(ValueError, match=r"load_autoencoder"):
        Flux2VAE.from_single_file("ae.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": (1, 1)}, r"patch_size is \[1, 1\]"),
        ({"batch_norm_eps": 0.0}, "batch_norm_eps is 0.0"),
        ({"decoder_block_out_channels": (32,)}, r"decoder_block_out_channels is \[32\].* 2 levels"),
        ({"upscale": 3}, "upscale is 3"),
    ],
)
def test_arguments_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        make_flux2(**changes)


def test_files_that_are_not_whole(tmp_path, flux2):
    path = tmp_path / "ae.safetensors"
    state = {name: value.contiguous() for name, value in to_flux2_names(flux2.state_dict()).items()}
    for missing in ("bn.running_mean", "bn.running_var"):
        save_file({name: value for name, value in state.items() if name != missing}, path)
        with pytest.raises(ValueError, match=rf"FLUX\.2 VAE, but lacks {missing}"):
            load_autoencoder(path)
    save_file({**state, "bn.running_mean": torch.zeros(8)}, path)
    with pytest.raises(ValueError, match=r"running_mean of shape \[8\], .*4 latent channels need \[16\]"):
        load_autoencoder(path)
    save_file(state, path)
    with pytest.raises(ValueError, match=r"family is 'flux', but this is a FLUX\.2 VAE"):
        load_autoencoder(path, family="flux")
    with pytest.raises(ValueError, match=r"family is 'flux2', but a FLUX\.2 VAE needs none"):
        load_autoencoder(path, family="flux2")
    # A config beside the file says what it should be.
    flux2.save_pretrained(tmp_path)
    plain = {name: value for name, value in flux2.state_dict().items() if not name.startswith("bn.")}
    save_file(plain, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"FLUX\.2 VAE, but lacks bn.running_mean"):
        load_autoencoder(tmp_path / "other.safetensors")
    save_file(plain, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError, match=r"lack 3 tensors, such as bn\."):
        load_autoencoder(tmp_path)
    with pytest.raises(ValueError, match=r"family is 'sd1', but this is a FLUX\.2 VAE"):
        load_autoencoder(tmp_path, family="sd1")


@torch.no_grad()
def test_latents_are_checked_and_calibrated(flux2, images):
    with pytest.raises(ValueError, match=r"\[B, 16, h/2, w/2\]; got \[2, 4, 8, 12\]"):
        flux2.from_latents(flux2.encode(images).latents)
    statistics = LatentStatistics.of(flux2.arrange(flux2.encode(images).latents))
    pixels = flux2(images).sample
    calibration = calibrate(flux2, statistics)
    assert (calibration.scaling_factor, calibration.folded) == (None, None)
    torch.testing.assert_close(flux2.bn.running_var, statistics.variance.float())
    latents = flux2.to_latents(images)
    eps = 1e-4
    expected = statistics.variance / (statistics.variance + eps)
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(16), atol=1e-5, rtol=0)
    variance = latents.var(dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(variance, expected.float(), atol=1e-4, rtol=0)
    assert torch.equal(flux2(images).sample, pixels)
    with pytest.raises(ValueError, match=r"leave per_channel out"):
        calibrate(flux2, statistics, per_channel=True)
    with pytest.raises(ValueError, match=r"of 4 latent channels, but the model has 16"):
        calibrate(flux2, LatentStatistics.of(flux2.encode(images).latents))


def test_it_is_a_kl_vae_for_what_asks_for_a_posterior(flux2):
    assert isinstance(flux2, KLVAE)
    assert "scaling_factor" not in flux2.config
    assert Flux2VAE.__module__ == "latentae"
