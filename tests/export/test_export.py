from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload_with_hook

from latentae import load_autoencoder
from latentae.console import FAMILIES
from latentae.export import DTYPES, FORMATS, ExportReport, export_autoencoder
from latentae.export.comparison import TOLERANCES
from latentae.export.export import _DTYPES, _FORMATS, check_target
from latentae.export.formats import Diffusers
from latentae.models.checkpoints import families
from tests.export.conftest import all_files, make_kl, make_vq


@pytest.mark.parametrize("make", [make_kl, make_vq])
def test_the_model_is_left_as_it_is(tmp_path, make):
    model = make(shift_factor=0.4).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = dict(model.config)
    report = export_autoencoder(model, tmp_path / "model", format="diffusers", dtype="bf16")
    assert model.training
    assert dict(model.config) == config
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert report.path == tmp_path / "model"
    assert report.files == ("config.json", "diffusion_pytorch_model.safetensors")
    assert set(report.errors) == {"encode", "decode", "normalised latents"}
    assert load_autoencoder(tmp_path / "model", torch_dtype=torch.bfloat16).dtype == torch.bfloat16


def test_a_model_in_half_precision(tmp_path):
    report = export_autoencoder(make_kl().half(), tmp_path / "model", format="diffusers", dtype="fp16")
    assert report.max_error == 0.0  # nothing is left to round


def test_tiles_do_not_disturb_the_comparison(tmp_path):
    model = make_kl(sample_size=4)
    model.enable_tiling(mode="blended")
    assert export_autoencoder(model, tmp_path / "model", format="diffusers").max_error == 0.0
    assert model.use_tiling


def test_an_earlier_export_is_replaced_only_on_request(tmp_path):
    path = tmp_path / "model.safetensors"
    export_autoencoder(make_kl(), path, format="ldm")
    first = path.read_bytes()
    with pytest.raises(ValueError, match="exists: choose another path, or say overwrite"):
        export_autoencoder(make_kl(), path, format="ldm", dtype="fp16")
    assert path.read_bytes() == first
    export_autoencoder(make_kl(), path, format="ldm", dtype="fp16", overwrite=True)
    assert len(path.read_bytes()) < 0.6 * len(first)
    assert all_files(tmp_path) == ["model.safetensors"]


class Spoilt(Diffusers):
    """Reads other weights than were written."""

    def reopen(self, path, family):
        model = super().reopen(path, family)
        with torch.no_grad():
            model.decoder.conv_out.bias += 0.1
        return model


def test_what_differs_from_the_model_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setitem(_FORMATS, "diffusers", Spoilt())
    with pytest.raises(ValueError, match=r"in decode it differs .* fp32 explains 1e-04 at most"):
        export_autoencoder(make_kl(), tmp_path / "new/model", format="diffusers")
    assert all_files(tmp_path) == []


def test_weights_that_overflow_the_dtype_are_not_kept(tmp_path):
    model = make_kl()
    with torch.no_grad():
        model.encoder.conv_in.weight *= 1e7  # a group normalisation follows
    with pytest.raises(ValueError, match="weights overflow, choose bf16 or fp32"):
        export_autoencoder(model, tmp_path / "model", format="diffusers", dtype="fp16")
    assert all_files(tmp_path) == []
    export_autoencoder(model, tmp_path / "model", format="diffusers", dtype="bf16")


def overflowing(part, **changes):
    """A model whose activations leave float16's range in one half, while its weights stay in it."""
    model = make_kl(**changes)
    with torch.no_grad():
        getattr(model, part).conv_in.weight.mul_(2e5)
    assert max(parameter.abs().max() for parameter in model.parameters()) < 65504
    return model


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_activations_that_overflow_in_float16(tmp_path, part):
    model = overflowing(part)
    report = export_autoencoder(model, tmp_path / "model", format="diffusers", dtype="fp16")
    (remark,) = [remark for remark in report.remarks if "force_upcast" in remark]
    assert part[:5] in remark
    assert load_autoencoder(tmp_path / "model").config.force_upcast is True
    assert model.config.force_upcast is False
    with pytest.raises(ValueError, match=r"in fp16: .* this format cannot record .* Choose bf16 or fp32"):
        export_autoencoder(model, tmp_path / "model.safetensors", format="ldm", dtype="fp16")
    for dtype in ("bf16", "fp32"):
        path = tmp_path / dtype
        assert export_autoencoder(model, path, format="diffusers", dtype=dtype).remarks == ()
        assert load_autoencoder(path).config.force_upcast is False


def test_no_force_upcast_where_pipelines_trip_over_it(tmp_path):
    model = overflowing("decoder", use_quant_conv=False, use_post_quant_conv=False)
    with pytest.raises(ValueError, match="Choose bf16 or fp32"):
        export_autoencoder(model, tmp_path / "model", format="diffusers", dtype="fp16")
    assert all_files(tmp_path) == []


def test_activations_that_overflow_in_any_dtype(tmp_path):
    model = make_kl()
    with torch.no_grad():  # its square, which a normalisation takes, leaves float32's range
        model.decoder.conv_in.weight.mul_(1e30)
    for dtype in ("fp32", "bf16"):
        with pytest.raises(ValueError, match="not finite in float32"):
            export_autoencoder(model, tmp_path / "model", format="diffusers", dtype=dtype)
    assert all_files(tmp_path) == []


def test_damaged_weights_are_named_although_no_image_meets_them(tmp_path):
    model = make_vq()
    with torch.no_grad():
        model.quantize.embedding.weight[3] = float("nan")
    with pytest.raises(ValueError, match=r"quantize\.embedding\.weight holds values that are not finite"):
        export_autoencoder(model, tmp_path / "model", format="diffusers")


@pytest.mark.parametrize("format", ["diffusers", "ldm"])
def test_adapters_and_fused_projections(tmp_path, format):
    peft = pytest.importorskip("peft")
    model = make_kl()
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["conv1"], init_lora_weights=False), "style")
    model.fuse_qkv_projections()
    path = tmp_path / ("model" if format == "diffusers" else "model.safetensors")
    report = export_autoencoder(model, path, format=format)
    assert report.max_error < 1e-4
    assert any("style" in remark for remark in report.remarks)
    assert set(load_autoencoder(path).state_dict()) == set(make_kl().state_dict())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"format": "onnx"}, "format is 'onnx', but must be one of diffusers, ldm, comfyui"),
        ({"format": "ldm", "dtype": "int8"}, "dtype is 'int8', but must be one of fp32, fp16, bf16"),
        ({"format": "ldm", "family": "sd9"}, "family is 'sd9', but must be one of sd1, sdxl, sd3, flux"),
        ({"format": "ldm"}, "end it in .safetensors"),
    ],
)
def test_bad_arguments(tmp_path, arguments, says):
    with pytest.raises(ValueError, match=says):
        export_autoencoder(make_kl(), tmp_path / "model", **arguments)


def test_only_autoencoders_of_ours():
    with pytest.raises(ValueError, match="model is a Linear"):
        export_autoencoder(torch.nn.Linear(1, 1), "model", format="ldm")


def test_a_model_that_accelerate_moves_to_another_device(tmp_path):
    model = make_kl()
    cpu_offload_with_hook(model, execution_device=torch.device("meta"))
    assert export_autoencoder(model, tmp_path / "a", format="diffusers").max_error < 1e-5
    assert model._hf_hook is not None  # it is left as it is


@pytest.mark.parametrize("hook", ["group_offloading", "layerwise_casting"])
def test_hooks_that_no_copy_can_be_freed_from_are_named(hook, tmp_path):
    model = make_kl()
    if hook == "group_offloading":
        cpu = torch.device("cpu")
        model.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")
    else:
        model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    with pytest.raises(ValueError, match=f"diffusers' hook '{hook}'"):
        export_autoencoder(model, tmp_path / "a", format="diffusers")


def test_choices_are_those_there_are():
    assert tuple(_FORMATS) == tuple(FORMATS)
    assert tuple(families.FAMILIES) == FAMILIES
    assert tuple(_DTYPES) == tuple(TOLERANCES) == DTYPES


def test_the_largest_error():
    report = ExportReport(Path("a"), "ldm", ("a",), {"encode": 1e-7, "decode": 3e-6}, 1e-4, "load it")
    assert report.max_error == 3e-6


@pytest.mark.parametrize(
    ("name", "folder", "overwrite", "says"),
    [
        ("new.safetensors", True, False, "names a file, but this format is a folder"),
        ("new", False, False, "end it in .safetensors"),
        ("file.safetensors", False, False, "exists: choose another path, or say overwrite"),
        ("model", True, False, "exists: choose another path"),
        ("file", True, True, "is a file: choose another path"),
        ("folder.safetensors", False, True, "is a folder: choose another path"),
        ("photos", True, True, r"holds more than a model \(holiday.jpg\)"),
    ],
)
def test_targets_that_are_refused(tmp_path, name, folder, overwrite, says):
    (tmp_path / "file.safetensors").touch()
    (tmp_path / "file").touch()
    (tmp_path / "folder.safetensors").mkdir()
    for file in ("model/config.json", "photos/holiday.jpg", "photos/config.json"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    with pytest.raises(ValueError, match=says):
        check_target(tmp_path / name, folder=folder, overwrite=overwrite)


def test_empty_folder_and_earlier_file_may_be_written_to(tmp_path):
    check_target(tmp_path, folder=True, overwrite=False)
    (tmp_path / "file.safetensors").touch()
    check_target(tmp_path / "file.safetensors", folder=False, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == [
        "file.safetensors"
    ]  # which only the export replaces
