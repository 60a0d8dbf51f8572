import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from latentae import KLVAE, VQGAN, VQVAE, load_autoencoder
from latentae.export import export_autoencoder
from latentae.export.ldm import ldm_objections
from tests.export.conftest import LEVELS, make_kl, make_vq

MEAN, STD = (1.0, -2.0, 0.5, 0.0), (2.0, 0.5, 1.0, 4.0)


def metadata(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def closeness(result, expected):
    return (result - expected).abs().max().item()


@pytest.mark.parametrize("channels", [4, 16])
@pytest.mark.parametrize("convs", [True, False])
def test_kl_round_trip(tmp_path, images, channels, convs):
    model = make_kl(latent_channels=channels, use_quant_conv=convs, use_post_quant_conv=convs)
    path = tmp_path / "model.safetensors"
    report = export_autoencoder(model, path, format="ldm")
    assert report.files == ("model.safetensors",)
    assert report.remarks == ()
    assert report.max_error < 1e-5
    written = metadata(path)
    config = json.loads(written.pop("latentae.config"))
    assert (config["_class_name"], config["norm_num_groups"]) == ("KLVAE", 32)
    assert written == {
        "format": "pt",
        "latentae.scaling_factor": "0.7",
        "latentae.shift_factor": "0.3",
    }
    state = load_file(path)
    assert ("post_quant_conv.weight" in state) == convs
    assert torch.equal(
        state["decoder.up.1.block.0.conv1.weight"], model.decoder.up_blocks[0].resnets[0].conv1.weight
    )
    assert state["encoder.mid.attn_1.q.weight"].shape == (64, 64, 1, 1)

    again = load_autoencoder(path)
    assert isinstance(again, KLVAE)
    generators = torch.manual_seed(0), torch.Generator().manual_seed(0)
    assert closeness(again.to_latents(images, generators[0]), model.to_latents(images, generators[1])) < 1e-5
    assert closeness(again(images).sample, model(images).sample) < 1e-5


@pytest.mark.parametrize("cls", [VQVAE, VQGAN])
def test_vq_round_trip(tmp_path, images, cls):
    attention = {
        "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
    }
    model = make_vq(cls, vq_embed_dim=8, quantizer={"type": "ema"}, shift_factor=0.4, **attention)
    path = tmp_path / "model.safetensors"
    report = export_autoencoder(model, path, format="ldm")
    assert report.max_error < 1e-5
    assert metadata(path)["latentae.shift_factor"] == "0.4"
    assert load_file(path)["quantize.embedding.weight"].shape == (32, 8)
    again = load_autoencoder(path)
    assert type(again) is cls
    assert torch.equal(again.encode_indices(images), model.encode_indices(images))
    assert closeness(again(images).sample, model(images).sample) < 1e-5
    assert closeness(again.to_latents(images), model.to_latents(images)) < 1e-5


@pytest.mark.parametrize(("dtype", "torch_dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
@pytest.mark.parametrize("make", [make_kl, make_vq])
def test_half_precision(tmp_path, make, dtype, torch_dtype):
    report = export_autoencoder(make(), tmp_path / "model.safetensors", format="ldm", dtype=dtype)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch_dtype}
    assert 1e-5 < report.max_error < report.tolerance


def test_numbers_by_channel_go_into_the_weights(tmp_path, images):
    model = make_kl(latents_mean=MEAN, latents_std=STD)
    path = tmp_path / "model.safetensors"
    (remark,) = export_autoencoder(model, path, format="ldm", family="sdxl").remarks
    assert "folded" in remark
    assert metadata(path)["latentae.family"] == "sdxl"
    again = load_autoencoder(path)
    assert (again.config.scaling_factor, again.config.shift_factor) == (0.7, 0.0)
    assert again.config.latents_mean is None
    expected = (model.encode(images).latents - torch.tensor(MEAN)[:, None, None]) * 0.7
    result = again.encode(images).latents * 0.7
    assert closeness(result, expected / torch.tensor(STD)[:, None, None]) < 1e-5


def test_unknown_scale_is_not_told(tmp_path):
    path = tmp_path / "model.safetensors"
    (remark,) = export_autoencoder(make_kl(scaling_factor=None), path, format="ldm").remarks
    assert "so the file does not tell it" in remark
    assert metadata(path).keys() == {"format", "latentae.config"}
    assert load_autoencoder(path).config.scaling_factor is None


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (lambda: make_kl(norm_num_groups=16), "norm_num_groups is 16, not 32"),
        (lambda: make_kl(act_fn="gelu"), "act_fn is gelu"),
        (lambda: make_kl(mid_block_add_attention=False), "mid_block_add_attention is off"),
        (lambda: make_kl(block_out_channels=(64, 96)), "not multiples of the first"),
        (lambda: make_vq(norm_type="spatial"), "norm_type is spatial"),
        (
            lambda: make_kl(down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D")),
            "attention at different levels",
        ),
    ],
)
def test_architectures_that_the_layout_cannot_hold(tmp_path, model, says):
    with pytest.raises(ValueError, match=f"an LDM file cannot hold this model: .*{says}.*diffusers"):
        export_autoencoder(model(), tmp_path / "model.safetensors", format="ldm")
    assert list(tmp_path.iterdir()) == []


def test_other_parts_are_objected_to():
    model = make_vq(num_vq_embeddings=16, quantizer={"type": "lfq", "bits": 4})
    assert ldm_objections(model) == ["its quantizer is 'lfq', without a table of codes"]
    model.encoder = torch.nn.Identity()
    assert ldm_objections(model) == ["its backbone is another one"]
    model = make_kl()
    model.register_to_config(down_block_types=("DownEncoderBlock2D", "DownBlock2D"))
    assert ldm_objections(model) == ["it has blocks of type DownBlock2D"]


def test_a_family_with_other_latents(tmp_path):
    with pytest.raises(ValueError, match="whose latents have 16 channels"):
        export_autoencoder(make_kl(), tmp_path / "model.safetensors", format="ldm", family="flux")


def test_any_number_of_image_channels(tmp_path):
    for channels in (1, 13):
        model = make_kl(in_channels=channels, out_channels=channels)
        path = tmp_path / f"{channels}.safetensors"
        assert export_autoencoder(model, path, format="ldm").max_error < 1e-5
        assert load_autoencoder(path).config.in_channels == channels
    assert LEVELS["block_out_channels"] == tuple(load_autoencoder(path).config.block_out_channels)
