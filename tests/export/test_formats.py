import json

import pytest
import torch
from diffusers import AutoencoderKL, VQModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from latentae import KLVAE, VQGAN, VQVAE, load_autoencoder
from latentae.export import export_autoencoder, export_diffusers
from latentae.export.export import _FORMATS
from latentae.export.formats import ComfyUI, comfyui_objections, ldm_objections
from latentae.export.prepare import write_out_codebook
from latentae.models.checkpoints.families import FAMILIES
from tests.export.conftest import LEVELS, all_files, make_kl, make_vq
from tests.export.ldm_reference import decode, encode, shapes
from tests.models.conftest import make

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
    assert "so the file does not record it" in remark
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


def test_a_folder_of_the_stock_class_and_nothing_else(tmp_path):
    torch.manual_seed(0)
    model = make(quantizer={"type": "ema", "revive_after": 10})
    export_diffusers(model, tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    config = json.loads((tmp_path / "model/config.json").read_text())
    assert config["_class_name"] == "VQModel"
    assert "quantizer" not in config
    assert set(load_file(tmp_path / "model/diffusion_pytorch_model.safetensors")) == set(model.state_dict())
    images = torch.rand(1, 3, 16, 16)
    stock = VQModel.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(stock(images).sample, model(images).sample, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtype(tmp_path, dtype):
    model = make_kl()
    export_diffusers(model, tmp_path / "model", dtype)
    state = load_file(tmp_path / "model/diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {dtype}
    assert model.dtype == torch.float32


def test_kl_keeps_shift_and_numbers_by_channel(tmp_path, images):
    model = make_kl(latents_mean=MEAN, latents_std=STD)
    assert export_autoencoder(model, tmp_path / "model", format="diffusers").remarks == ()
    stock = AutoencoderKL.from_pretrained(tmp_path / "model").eval()
    config = stock.config
    assert (config.scaling_factor, config.shift_factor) == (0.7, 0.3)
    assert (tuple(config.latents_mean), tuple(config.latents_std)) == (MEAN, STD)
    assert (stock(images).sample - model(images).sample).abs().max() < 1e-5


def test_vq_shift_goes_into_the_weights(tmp_path, images):
    model = make_vq(shift_factor=0.4)
    (remark,) = export_autoencoder(model, tmp_path / "model", format="diffusers").remarks
    assert "folded into the convolutions" in remark
    stock = VQModel.from_pretrained(tmp_path / "model").eval()
    assert (stock.encode(images).latents * 0.7 - model.to_latents(images)).abs().max() < 1e-5
    assert (stock(images).sample - model(images).sample).abs().max() < 1e-5
    assert model.config.shift_factor == 0.4


def test_what_pipelines_trip_over_is_mended_or_said(tmp_path):
    model = make_kl(use_quant_conv=False, use_post_quant_conv=False, force_upcast=True, scaling_factor=None)
    model.register_to_config(shift_factor=None)
    remarks = export_autoencoder(model, tmp_path / "model", format="diffusers", family="sd1").remarks
    assert [remark.split(",")[0] for remark in remarks] == [
        "family sd1 changes nothing in this format",
        "the scale of the latents is not known",
        "force_upcast is off",
    ]
    config = json.loads((tmp_path / "model/config.json").read_text())
    assert config["shift_factor"] == 0.0
    assert config["force_upcast"] is False
    assert model.config.force_upcast is True


def make_real(levels, **changes):
    """The one architecture that ComfyUI knows, with random weights."""
    return make_kl(
        block_out_channels=(128, 256, 512, 512)[:levels],
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=2,
        **changes,
    )


@pytest.mark.parametrize(
    ("family", "levels", "changes"),
    [
        ("flux", 4, {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}),
        ("sdxl", 3, {"latents_mean": MEAN, "latents_std": STD}),
    ],
)
@torch.no_grad()
def test_what_the_familys_programs_compute_is_what_the_model_says(tmp_path, family, levels, changes):
    model = make_real(levels, **changes)
    path = tmp_path / "vae.safetensors"
    report = export_autoencoder(model, path, format="comfyui", family=family)
    assert report.max_error < 2e-5
    assert "folded" in report.remarks[0]
    assert family in report.load_hint

    state = load_file(path)
    channels = model.config.latent_channels
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == shapes(
        128, (1, 2, 4, 4)[:levels], 2, channels, convs=True
    )
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    moments = encode(state, images, levels, 2)
    constants = FAMILIES[family]
    noise = torch.randn(moments[:, :channels].shape, generator=torch.manual_seed(0))
    latents = moments[:, :channels] + (moments[:, channels:] / 2).exp() * noise
    expected = model.to_latents(images, torch.manual_seed(0))
    assert (
        (latents - constants.shift) * constants.scale - expected
    ).abs().max() < 2e-5 * expected.abs().max()
    pixels = decode(state, expected / constants.scale + constants.shift, levels, 2)
    assert (pixels - model.from_latents(expected)).abs().max() < 2e-5


def test_nothing_is_added_where_the_constants_hold_already(tmp_path):
    convs = {"use_quant_conv": False, "use_post_quant_conv": False}
    model = make_real(3, latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609, **convs)
    path = tmp_path / "vae.safetensors"
    report = export_autoencoder(model, path, format="comfyui", family="sd3", dtype="bf16")
    assert report.remarks == ("one latent is 4x4 pixels, while nodes that make empty latents assume 8x8",)
    state = load_file(path)
    assert "post_quant_conv.weight" not in state
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}

    config = load_autoencoder(path).config  # our own reader takes it for what it is
    assert (config.scaling_factor, config.shift_factor) == (1.5305, 0.0609)

    state.pop("decoder.norm_out.bias")
    save_file(state, path)
    with pytest.raises(RuntimeError, match="norm_out"):
        ComfyUI().reopen(path, "sd3")

    model.register_to_config(scaling_factor=None)
    with pytest.raises(ValueError, match=r"not known, .*latent_stats.py.*family='sd1'"):
        export_autoencoder(model, tmp_path / "unknown.safetensors", format="comfyui", family="sd3")
    assert all_files(tmp_path) == ["vae.safetensors"]


def test_models_that_comfyui_cannot_hold(tmp_path):
    model = make_kl(in_channels=1, latent_channels=8)
    assert comfyui_objections(model, "sd1") == [
        "block_out_channels is [32, 64], not [128, 256, 512] or [128, 256, 512, 512]",
        "layers_per_block is 1, not 2",
        "latent_channels is 8, and sd1 has 4",
        "images have 1 channels, not 3",
    ]
    attention = {
        "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
    }
    assert "it has attention outside of the middle block" in comfyui_objections(make_kl(**attention), "sd1")
    assert "norm_num_groups is 16, not 32" in comfyui_objections(make_kl(norm_num_groups=16), "sd1")
    with pytest.raises(ValueError, match=r"ComfyUI cannot hold this model as sd1: it is a VQGAN, .* KL-VAEs"):
        export_autoencoder(make_vq(), tmp_path / "a.safetensors", format="comfyui", family="sd1")
    with pytest.raises(ValueError, match="needs a family, one of sd1, sdxl, sd3, flux"):
        export_autoencoder(model, tmp_path / "a.safetensors", format="comfyui")


@pytest.mark.parametrize("kind", ["vector", "ema", "cosine", "simvq"])
def test_the_stock_class_has_the_same_codes_to_the_last_bit(kind, images, tmp_path):
    model = make_vq(quantizer={"type": kind})
    report = export_autoencoder(model, tmp_path / "model", format="diffusers")
    stock = VQModel.from_pretrained(tmp_path / "model")
    assert json.loads((tmp_path / "model/config.json").read_text())["_class_name"] == "VQModel"
    latents = model.encode(images).latents
    assert torch.equal(stock.encode(images).latents, latents)
    indices = model.encode_indices(images)
    assert torch.equal(stock.quantize(latents)[2][2], indices.flatten())
    codes = model.codes_to_latents(indices)
    assert torch.equal(stock.quantize.get_codebook_entry(indices.flatten(), (2, 8, 12, 4)), codes)
    assert torch.equal(stock.decode(codes, force_not_quantize=True).sample, model.decode_indices(indices))
    written_out = (
        f"the codes of quantizer {kind!r} were written out as a plain codebook, with the same indices"
    )
    assert (written_out in report.remarks) == (kind in ("cosine", "simvq"))
    assert model.config.quantizer == {"type": kind}  # the source is as it was


@pytest.mark.parametrize("kind", ["cosine", "simvq"])
def test_a_single_file_has_them_too(kind, images, tmp_path):
    model = make_vq(quantizer={"type": kind})
    export_autoencoder(model, tmp_path / "model.safetensors", format="ldm")
    again = load_autoencoder(tmp_path / "model.safetensors")
    assert torch.equal(again.encode_indices(images), model.encode_indices(images))
    assert torch.equal(again.decode_indices(model.encode_indices(images)), model(images).sample)


def test_a_shift_that_cosine_codes_cannot_follow_is_folded_into_the_plain_ones(images, tmp_path):
    model = make_vq(quantizer={"type": "cosine"}, shift_factor=0.5)
    export_autoencoder(model, tmp_path / "model", format="diffusers")
    stock = VQModel.from_pretrained(tmp_path / "model")
    scaled = (model.encode(images).latents - 0.5) * 0.7
    torch.testing.assert_close(stock.encode(images).latents * stock.config.scaling_factor, scaled)
    torch.testing.assert_close(stock(images).sample, model(images).sample, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "quantizer",
    [
        {"type": "fsq", "levels": [8, 5, 5]},
        {"type": "lfq", "bits": 5},
        {"type": "bsq", "bits": 5},
        {"type": "residual", "depth": 2, "member": {"type": "vector"}},
        {"type": "grouped", "groups": 2, "member": {"type": "vector"}},
        {"type": "ibq"},
    ],
)
@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_what_holds_no_single_table_says_what_it_needs(quantizer, shift, tmp_path):
    model = make_vq(num_vq_embeddings=256, quantizer=quantizer, shift_factor=shift)
    with pytest.raises(
        ValueError, match=f"quantizer '{quantizer['type']}' is not.*only latentae.load_autoencoder opens"
    ):
        export_autoencoder(model, tmp_path / "model", format="diffusers")
    with pytest.raises(ValueError, match=r"without a table of codes\. .*latentae\.load_autoencoder"):
        export_autoencoder(model, tmp_path / "model.safetensors", format="ldm")
    assert list(tmp_path.iterdir()) == []


def test_other_models_have_nothing_to_write_out():
    assert write_out_codebook(make_kl()) == []
    assert write_out_codebook(make_vq()) == []


@pytest.mark.parametrize("name", ["diffusers", "ldm"])
def test_each_step_does_as_it_says(name, tmp_path, images):
    steps, model = _FORMATS[name], make_kl()
    path = tmp_path / ("model" if steps.is_folder else "model.safetensors")
    assert steps.prepare(model, None) == []
    steps.write(model, path, torch.float16, None)
    assert path.is_dir() == steps.is_folder
    reopened = steps.reopen(path, None)
    assert reopened.dtype == torch.float32
    assert not reopened.training
    assert (reopened.encode(images).latents - model.encode(images).latents).abs().max() < 1e-2
    assert str(path) in steps.load_hint(model, path, None)
