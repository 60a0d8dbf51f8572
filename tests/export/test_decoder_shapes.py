"""Models whose decoder is not the mirror of their encoder, in formats whose readers assume that it is."""

import pytest
import torch

from latentae.export import export_autoencoder
from latentae.latents.recalibrate import _open_model
from latentae.probe.pipeline import _stock, pipeline_autoencoder
from tests.export.conftest import make_kl

SHAPES = {"narrow": {"decoder_block_out_channels": (32, 32)}, "x2": {"upscale": 2}}


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("format", ["diffusers", "ldm", "comfyui"])
def test_formats_refuse_them(kind, format, tmp_path):
    model = make_kl(**SHAPES[kind])
    path = tmp_path / ("out" if format == "diffusers" else "out.safetensors")
    says = "AutoencoderKL cannot hold a decoder" if format == "diffusers" else "decoder is not the mirror"
    with pytest.raises(ValueError, match=says) as caught:
        export_autoencoder(model, path, format=format, family="sd1")
    assert "load_autoencoder" in str(caught.value) or format == "comfyui"
    assert not path.exists()


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
