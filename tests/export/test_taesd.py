"""A TinyAutoencoder in TAESD's two files: the way back from what ``load_autoencoder`` reads."""

import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file

from latentae import TinyAutoencoder, load_autoencoder
from latentae.export import export_autoencoder
from latentae.export.taesd import PAIR_SUFFIXES
from latentae.models.checkpoints.families import FAMILIES
from latentae.models.checkpoints.taesd import find_halves, taesd_arguments
from tests.export.conftest import all_files, make_kl
from tests.models.checkpoints.examples import images_for
from tests.models.checkpoints.taesd_reference import EDITIONS, FITS_STOCK, build, decoder, encoder, in_layout
from tests.models.checkpoints.taesd_reference import expected as run_reference

COMFYUI = {"widths": (64,) * 4}
COMFYUI_NAMES = {"sd1": "taesd", "sdxl": "taesdxl", "sd3": "taesd3", "flux": "taef1"}


def tiny(halves, **config):
    """Our model of a reference's halves."""
    found = find_halves(in_layout(halves, "class"))
    model = TinyAutoencoder(**{**taesd_arguments(found["encoder"], found["decoder"]), **config}).eval()
    model.load_state_dict(in_layout(halves, "diffusers"))
    return model


def comfyui_edition(latents, pooled=False):
    """Halves of the one architecture that ComfyUI builds, with random weights."""
    torch.manual_seed(0)
    shared = {"latents": latents, "widths": (64,) * 4, "pooled": pooled}
    return encoder(**shared, blocks=(1, 3, 3, 3)).eval(), decoder(**shared, blocks=(3, 3, 3, 1)).eval()


@torch.no_grad()
@pytest.mark.parametrize("edition", EDITIONS)
def test_every_edition_has_the_published_names_and_the_same_pixels(edition, tmp_path):
    halves = build(edition)
    model = tiny(halves)
    report = export_autoencoder(model, tmp_path / "out", format="taesd")
    assert report.files == ("tiny_decoder.safetensors", "tiny_encoder.safetensors")
    assert report.max_error == 0.0
    for side, half in zip(("encoder", "decoder"), halves, strict=True):
        saved = load_file(tmp_path / "out" / f"tiny_{side}.safetensors")
        assert saved.keys() == half.state_dict().keys()
        assert all(torch.equal(tensor, saved[name]) for name, tensor in half.state_dict().items())
    images = images_for(model, 64, 32)
    again = load_autoencoder(tmp_path / "out")
    assert torch.equal(again(images).sample, model(images).sample)
    assert again.fits_stock_class == (edition in FITS_STOCK)
    assert "ComfyUI cannot read these files" in report.remarks[0]


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_comfyui_finds_and_computes_what_a_denoiser_sees(family, tmp_path):
    constants = FAMILIES[family]
    model = tiny(comfyui_edition(constants.latent_channels))
    report = export_autoencoder(model, tmp_path / "out", format="taesd", family=family)
    name = COMFYUI_NAMES[family]
    assert report.files == (f"{name}_decoder.safetensors", f"{name}_encoder.safetensors")
    assert report.remarks == ()
    assert f"choose {name} in the Load VAE node" in report.load_hint

    # ComfyUI knows scale and shift by the name, and applies them on both sides of its VAE.
    halves = comfyui_edition(constants.latent_channels)
    for half, side in zip(halves, ("encoder", "decoder"), strict=True):
        half.load_state_dict(load_file(tmp_path / "out" / f"{name}_{side}.safetensors"))
    images = images_for(model, 16, 24)
    raw = run_reference(halves, images)[0] / constants.scale + constants.shift
    seen = (raw - constants.shift) * constants.scale
    torch.testing.assert_close(seen, model.to_latents(images), rtol=1e-5, atol=1e-5)
    back = (seen / constants.scale + constants.shift - constants.shift) * constants.scale
    pixels = halves[1](back) * 2 - 1
    torch.testing.assert_close(pixels, model.from_latents(seen), rtol=1e-5, atol=1e-5)


def test_names_without_a_family(tmp_path):
    report = export_autoencoder(tiny(comfyui_edition(4)), tmp_path / "sd", format="taesd", dtype="fp16")
    assert report.files[0] == "tiny_decoder.safetensors"
    assert "begin with taesd for sd1, taesdxl for sdxl" in report.remarks[0]
    assert {tensor.dtype for tensor in load_file(tmp_path / "sd/tiny_decoder.safetensors").values()} == {
        torch.float16
    }
    report = export_autoencoder(tiny(comfyui_edition(32, pooled=True)), tmp_path / "f2", format="taesd")
    assert report.files == ("taef2_decoder.safetensors", "taef2_encoder.safetensors")
    assert "vae_approx, for previews of FLUX.2" in report.load_hint


@pytest.mark.parametrize(
    ("config", "family", "says"),
    [
        ({"scaling_factor": 0.5}, None, r"a denoiser sees \(latents - 0\) \* 0.5, and readers"),
        ({"act_fn": "gelu"}, None, "act_fn is gelu, and readers of the files assume relu"),
        ({"upsample_fn": "bilinear"}, None, "upsample_fn is bilinear"),
        ({}, "flux", "latent_channels is 4, and flux has 16"),
        ({}, "sd1", "not those of the one TAESD that ComfyUI builds"),
    ],
)
def test_what_readers_would_take_for_something_else(config, family, says, tmp_path):
    model = tiny(build("taesd"), **config)
    with pytest.raises(ValueError, match=f"TAESD's pair of files cannot hold this model: .*{says}.*latentae"):
        export_autoencoder(model, tmp_path / "out", format="taesd", family=family)
    assert list(tmp_path.iterdir()) == []


def test_layers_that_tensors_do_not_show(tmp_path):
    halving = "strided_conv_without_bias 8 8"
    layers = ["conv 3 8", "relu", "block 8 8", halving, "block 8 8", "conv 8 4"]  # the relu has no tensors
    model = TinyAutoencoder(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        encoder_layers=layers,
    ).eval()
    with pytest.raises(
        ValueError, match=r"pair of files cannot hold this model: .*latentae .a folder that only"
    ):
        export_autoencoder(model, tmp_path / "out", format="taesd")
    report = export_autoencoder(model, tmp_path / "out", format="latentae")
    assert report.max_error == 0.0
    assert load_autoencoder(tmp_path / "out").config.encoder_layers == layers


def test_other_models_and_formats(tmp_path):
    with pytest.raises(ValueError, match=r"it is a KLVAE, not a .*as diffusers, ldm or latentae"):
        export_autoencoder(make_kl(), tmp_path / "out", format="taesd")
    model = tiny(build("taesd"))
    for name, family in (("ldm", None), ("comfyui", "sd1")):
        with pytest.raises(ValueError, match=r"Export it as diffusers, taesd or latentae .a folder"):
            export_autoencoder(model, tmp_path / "out.safetensors", format=name, family=family)
    with pytest.raises(ValueError, match=r"no layers like those.* Export it as taesd or latentae"):
        export_autoencoder(tiny(build("f16")), tmp_path / "out", format="diffusers")
    assert all_files(tmp_path) == []


@torch.no_grad()
def test_as_the_stock_class(tmp_path):
    model = tiny(build("taesd"), scaling_factor=0.5)
    report = export_autoencoder(model, tmp_path / "out", format="diffusers")
    assert report.load_hint.startswith("diffusers.AutoencoderTiny")
    assert report.max_error == 0.0
    stock, images = AutoencoderTiny.from_pretrained(tmp_path / "out").eval(), images_for(model)
    assert stock.config.scaling_factor == 0.5
    assert torch.equal(stock.decode(stock.encode(images).latents).sample, model(images).sample)


def test_a_pair_is_replaced_and_nothing_else(tmp_path):
    model, out = tiny(build("taesd")), tmp_path / "out"
    export_autoencoder(model, out, format="taesd")
    with pytest.raises(ValueError, match="exists"):
        export_autoencoder(model, out, format="taesd")
    export_autoencoder(model, out, format="taesd", overwrite=True)
    assert all_files(out) == [f"tiny{suffix}" for suffix in sorted(PAIR_SUFFIXES)]
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds more than a model"):
        export_autoencoder(model, out, format="taesd", overwrite=True)
