"""Models whose decoder is not the mirror of their encoder, in formats whose readers assume that it is."""

import re

import pytest
import torch
from diffusers import AutoencoderKLFlux2
from safetensors.torch import load_file

from latentae import KLVAE, load_autoencoder
from latentae.export import export_autoencoder
from latentae.export.formats import comfyui_objections
from latentae.latents.recalibrate import _open_model
from latentae.probe.pipeline import _stock, pipeline_autoencoder
from tests.export.conftest import make_kl, make_vq
from tests.export.ldm_reference import decode, shapes
from tests.models.test_flux2 import make_flux2

SHAPES = {"narrow": {"decoder_block_out_channels": (32, 32)}, "x2": {"upscale": 2}}
# ComfyUI's architecture with three levels
LEVELS = {
    "block_out_channels": (128, 256, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 2,
}


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("format", ["diffusers", "ldm"])
def test_formats_refuse_them_and_name_the_one_that_does_not(kind, format, tmp_path):
    model = make_kl(**SHAPES[kind])
    path = tmp_path / ("out" if format == "diffusers" else "out.safetensors")
    says = "AutoencoderKL cannot hold a decoder" if format == "diffusers" else "decoder is not the mirror"
    remedy = r"\. Export it as latentae \(a folder that only latentae\.load_autoencoder opens\)$"
    with pytest.raises(ValueError, match=f"{says}.*{remedy}"):
        export_autoencoder(model, path, format=format)
    assert not path.exists()


@torch.no_grad()
@pytest.mark.parametrize("kind", SHAPES)
def test_our_own_folder_holds_them(kind, images, tmp_path):
    model = make_kl(**SHAPES[kind])
    report = export_autoencoder(model, tmp_path / "out", format="latentae")
    assert report.max_error == 0.0
    assert report.load_hint == f'latentae.load_autoencoder("{tmp_path / "out"}")'
    again = load_autoencoder(tmp_path / "out")
    assert type(again) is KLVAE
    assert torch.equal(again(images).sample, model(images).sample)
    half = export_autoencoder(model, tmp_path / "half", format="latentae", dtype="bf16")
    assert 0.0 < half.max_error < half.tolerance
    saved = load_file(tmp_path / "half/diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    assert model.dtype == torch.float32


@torch.no_grad()
@pytest.mark.parametrize("quantizer", [{"type": "fsq", "levels": [8, 5, 5]}, {"type": "lfq", "bits": 5}])
def test_our_own_folder_holds_quantizers_without_a_table(quantizer, images, tmp_path):
    model = make_vq(num_vq_embeddings=256, quantizer=quantizer, shift_factor=0.5)
    assert export_autoencoder(model, tmp_path / "out", format="latentae").max_error == 0.0
    again = load_autoencoder(tmp_path / "out")
    assert torch.equal(again.encode_indices(images), model.encode_indices(images))
    assert again.config.shift_factor == 0.5


@torch.no_grad()
def test_a_flux2_vae_with_a_narrow_decoder_is_a_stock_model(images, tmp_path):
    model = make_flux2(decoder_block_out_channels=(32, 32))
    assert export_autoencoder(model, tmp_path / "out", format="diffusers").max_error == 0.0
    stock = AutoencoderKLFlux2.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(stock(images).sample, model(images).sample)
    assert torch.equal(stock.bn.running_var, model.bn.running_var)
    # FLUX.2's own layout, which ComfyUI reads, too
    assert export_autoencoder(model, tmp_path / "ae.safetensors", format="ldm").max_error == 0.0
    assert export_autoencoder(model, tmp_path / "own", format="latentae").max_error == 0.0


@torch.no_grad()
def test_comfyui_reads_a_decoder_of_half_the_widths(tmp_path):
    model = make_kl(**LEVELS, decoder_block_out_channels=(64, 128, 256))
    path = tmp_path / "vae.safetensors"
    report = export_autoencoder(model, path, format="comfyui", family="sd1")
    assert report.max_error < 2e-5
    assert "other widths than usual" in report.remarks[1]

    # The encoder is 128 wide and the decoder 64, as its first convolution says.
    state, multiples = load_file(path), (1, 2, 4)
    usual, narrow = (shapes(width, multiples, 2, 4, convs=True) for width in (128, 64))
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
        name: (narrow if name.startswith("decoder.") else usual)[name] for name in usual
    }
    assert state["decoder.conv_in.weight"].shape[0] // multiples[-1] == 64
    pictures = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    latents = model.to_latents(pictures, torch.manual_seed(0))
    pixels = decode(state, latents / 0.18215, 3, 2)
    assert (pixels - model.from_latents(latents)).abs().max() < 2e-5


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"upscale": 2}, "images are 2 times as large as the encoder's, and ComfyUI reads no such VAE"),
        (
            {"decoder_block_out_channels": (64, 128, 128)},
            r"widths are \[64, 128, 128\], not \[1, 2, 4\] times",
        ),
        ({"decoder_layers_per_block": 1}, "decoder's layers_per_block is 1, not 2"),
    ],
)
def test_decoders_that_comfyui_does_not_read(changes, says, tmp_path):
    with torch.device("meta"):
        model = KLVAE(**LEVELS, latent_channels=4, **changes)
    (objection,) = comfyui_objections(model, "sd1")
    assert re.search(says, objection)


def test_with_the_mirror_they_take_it(tmp_path):
    model = make_kl(decoder_block_out_channels=(32, 64), decoder_layers_per_block=1)
    report = export_autoencoder(model, tmp_path / "out.safetensors", format="ldm")
    assert report.max_error < 1e-5


def test_a_recalibrated_model_would_not_be_written(tmp_path):
    make_kl(**SHAPES["x2"]).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="cannot be written as one"):
        _open_model(str(tmp_path / "model"), tmp_path / "out", per_channel=False)
    assert _open_model(str(tmp_path / "model"), None, per_channel=False).upscale == 2


def test_the_probe_keeps_the_class_and_one_size():
    model = make_kl(**SHAPES["narrow"])
    kept, remark = _stock(model)
    assert kept is model
    assert "import latentae" in remark
    stock, remark = _stock(make_kl())
    assert remark is None
    assert torch.equal(stock.decoder.conv_in.weight, make_kl().decoder.conv_in.weight)
    assert pipeline_autoencoder(model).vae.config.decoder_block_out_channels == (32, 32)
    with pytest.raises(ValueError, match="its images are 2 times as large as those that it encodes"):
        pipeline_autoencoder(make_kl(**SHAPES["x2"]))
