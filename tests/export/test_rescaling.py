import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from latentae import cli, load_autoencoder
from latentae.data import DataSelection
from latentae.export import export_autoencoder
from latentae.export.export import _FORMATS
from latentae.export.formats import Diffusers
from latentae.export.rescaling import read_images
from tests.data.pictures import shows_green, write_cutout
from tests.export.conftest import all_files, make_kl, make_vq

THREE = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
}


def overflowing(make=make_kl, **changes):
    """A model whose decoder's stream leaves float16's range."""
    model = make(**{"sample_size": 16, **changes})
    with torch.no_grad():
        for part in (model.decoder.conv_in.weight, model.decoder.conv_in.bias):
            part.mul_(300)
        for block in (model.decoder.mid_block, *model.decoder.up_blocks):
            for resnet in block.resnets:
                resnet.conv2.weight.mul_(2e5)
    return model


@torch.no_grad()
def decode_in_half(path, latents, **options):
    model = nn.Module.to(load_autoencoder(path, **options), torch.float16)
    return model.decode(latents.half()).sample.float()


@pytest.mark.parametrize(
    ("format", "make"), [("diffusers", make_kl), ("ldm", make_kl), ("diffusers", make_vq)]
)
@torch.no_grad()
def test_a_file_that_runs_in_float16(tmp_path, images, format, make):
    model = overflowing(make, force_upcast=True)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = tmp_path / ("model" if format == "diffusers" else "model.safetensors")
    report = export_autoencoder(model, path, format=format, dtype="fp16", half_safe_images=images)
    assert report.half_safe.changed
    assert any("read back and run in float16, latents differ" in remark for remark in report.remarks)
    assert not any("force_upcast" in remark for remark in report.remarks)
    assert report.max_error < 1e-2
    # The model that was handed in is left as it is; the file has the same names.
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert model.config.force_upcast is True
    written = load_autoencoder(path)
    assert set(written.state_dict()) == set(state)
    assert written.config.force_upcast is False
    latents = model.encode(images).latents
    expected = model.decode(latents).sample
    found = decode_in_half(path, latents)
    assert (found - expected).abs().max() < 0.02 * (expected.max() - expected.min())


@torch.no_grad()
def test_a_file_for_comfyui(tmp_path):
    images = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    model = overflowing(block_out_channels=(128, 256, 512), layers_per_block=2, **THREE)
    path = tmp_path / "vae.safetensors"
    arguments = {"format": "comfyui", "family": "sd1", "half_safe_images": images}
    report = export_autoencoder(model, path, **arguments)
    assert report.half_safe.changed
    assert report.max_error < 1e-4  # the same function in float32, with the scale folded into the weights
    reopened = nn.Module.to(_FORMATS["comfyui"].reopen(path, "sd1"), torch.float16)
    latents = reopened.encode(images.half()).latents
    assert reopened.decode(latents).sample.isfinite().all()


def test_what_cannot_be_rescued_is_marked(tmp_path, images):
    model = overflowing()
    with torch.no_grad():
        model.decoder.conv_norm_out.weight.mul_(3e4)
    for dtype in ("fp32", "fp16"):
        path = tmp_path / dtype
        report = export_autoencoder(model, path, format="diffusers", dtype=dtype, half_safe_images=images)
        assert "no factor of weights can lower it" in report.half_safe.obstacle
        assert len([remark for remark in report.remarks if "force_upcast is on" in remark]) == 1
        assert load_autoencoder(path).config.force_upcast is True
        weight = load_autoencoder(path, torch_dtype=torch.float32).decoder.conv_in.weight
        assert torch.allclose(weight, model.decoder.conv_in.weight, rtol=1e-3)


class Spoilt(Diffusers):
    """Reads weights that overflow in float16 only."""

    def reopen(self, path, family):
        model = super().reopen(path, family)
        with torch.no_grad():
            for part in model.decoder.up_blocks[0].resnets[0].conv1.parameters():
                part.mul_(2.0**20)  # a normalisation follows
        return model


def test_what_does_not_run_in_float16_is_not_kept(tmp_path, images, monkeypatch):
    monkeypatch.setitem(_FORMATS, "diffusers", Spoilt())
    with pytest.raises(ValueError, match=r"not kept: read back, in float16 \d+\.\d% of the values are not"):
        export_autoencoder(overflowing(), tmp_path / "model", format="diffusers", half_safe_images=images)
    assert all_files(tmp_path) == []


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_images_are_read_for_the_model(photos):
    selection = DataSelection(str(photos))
    assert read_images(make_kl(sample_size=16), selection).shape == (3, 3, 16, 16)
    grey = read_images(make_kl(in_channels=1), selection, image_size=8, max_images=2)
    assert grey.shape == (2, 1, 8, 8)
    assert -1 <= grey.min() < grey.max() <= 1


@pytest.mark.parametrize("alpha", [True, False])
def test_arrays_are_resized_by_their_alpha(tmp_path, alpha):
    write_cutout(tmp_path / "data/a.npy", side=30)
    selection, model = DataSelection(str(tmp_path / "data")), make_kl(in_channels=4, sample_size=16)
    assert shows_green(read_images(model, selection, alpha=alpha)) != alpha
    with pytest.raises(ValueError, match="alpha is set, but the model takes images of 3 channels"):
        read_images(make_kl(), selection, alpha=True)


def test_the_command_reads_images_by_alpha(tmp_path, capsys, monkeypatch):
    write_cutout(tmp_path / "data/a.npy", side=30)
    make_kl(in_channels=4, out_channels=4, sample_size=16).save_pretrained(tmp_path / "model")
    seen = []

    def read(*arguments, **options):
        seen.append(read_images(*arguments, **options))
        return seen[0]

    monkeypatch.setattr("latentae.export.rescaling.read_images", read)
    arguments = [str(tmp_path / "model"), "--format", "diffusers", "--out", str(tmp_path / "out"), "--alpha"]
    assert cli.main(["export", *arguments]) == 2
    assert capsys.readouterr().err == "error: --alpha is for --half-safe: without it, no images are read\n"
    assert cli.main(["export", *arguments, "--half-safe", "--data", str(tmp_path / "data")]) == 0
    assert seen[0].shape == (1, 4, 16, 16)
    assert not shows_green(seen[0])


def test_the_command(tmp_path, photos, capsys):
    overflowing().save_pretrained(tmp_path / "run/model")
    out = tmp_path / "vae.safetensors"
    arguments = [str(tmp_path / "run"), "--format", "ldm", "--dtype", "fp16", "--out", str(out)]
    assert cli.main(["export", *arguments]) == 2
    assert "cannot record that it must run in float32" in capsys.readouterr().err
    assert cli.main(["export", *arguments, "--half-safe", "--data", str(photos)]) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert "layers were rescaled, by 1/" in notes[0]
    assert notes[-1].startswith("note: read back and run in float16, latents differ from float64's by")
    assert {tensor.dtype for tensor in load_file(out).values()} == {torch.float16}


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--half-safe"], "--half-safe needs --data IMAGES"),
        (["--data", "photos"], "--data is for --half-safe"),
        (["--half-safe", "--data", "{tmp}/nothing"], "nothing"),
    ],
)
def test_bad_options(tmp_path, capsys, more, says):
    make_kl().save_pretrained(tmp_path / "model")
    more = [argument.format(tmp=tmp_path) for argument in more]
    arguments = [str(tmp_path / "model"), "--format", "diffusers", "--out", str(tmp_path / "out"), *more]
    assert cli.main(["export", *arguments]) == 2
    errors = capsys.readouterr().err
    assert says in errors
    assert len(errors.splitlines()) == 1
    assert not (tmp_path / "out").exists()
