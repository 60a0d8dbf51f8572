import pytest
import torch
from safetensors.torch import load_file, save_file

from latentae import load_autoencoder
from latentae.export import export_autoencoder
from latentae.export.comfyui import comfyui_objections, read_as_comfyui
from latentae.models.checkpoints.families import FAMILIES
from tests.export.conftest import all_files, make_kl, make_vq
from tests.export.ldm_reference import decode, encode, shapes

MEAN, STD = (1.0, -2.0, 0.5, 0.0), (2.0, 0.5, 1.0, 4.0)


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
    assert report.remarks == ("one latent is 4x4 pixels, while nodes that make empty latents count with 8x8",)
    state = load_file(path)
    assert "post_quant_conv.weight" not in state
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}

    config = load_autoencoder(path).config  # our own reader takes it for what it is
    assert (config.scaling_factor, config.shift_factor) == (1.5305, 0.0609)

    state.pop("decoder.norm_out.bias")
    save_file(state, path)
    with pytest.raises(RuntimeError, match="norm_out"):
        read_as_comfyui(path, "sd3")

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
