import pytest
import torch
from safetensors.torch import load_file, save_file

from latentae import cli, load_autoencoder
from latentae.export import export_autoencoder
from tests.export.conftest import all_files, make_kl

THREE = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
}


def main(arguments):
    return cli.main(["export", *arguments])


@pytest.fixture
def run_folder(tmp_path):
    make_kl().save_pretrained(tmp_path / "run/model")
    return tmp_path / "run"


def test_a_run_as_one_file(run_folder, tmp_path, capsys):
    out = tmp_path / "exports/vae.safetensors"
    assert main([str(run_folder), "--format", "ldm", "--dtype", "fp16", "--out", str(out)]) == 0
    printed, errors = capsys.readouterr()
    assert errors == ""
    compared, wrote, load = printed.splitlines()
    assert compared.startswith("reopened and compared with the model: max error ")
    assert "fp16 allows 1e-02" in compared
    assert wrote == f"wrote {out} (ldm, fp16: vae.safetensors)"
    assert load == f'to load it: latentae.load_autoencoder("{out}")'
    assert {tensor.dtype for tensor in load_file(out).values()} == {torch.float16}
    # and from one format to the next
    assert main([str(out), "--format", "diffusers", "--out", str(tmp_path / "folder")]) == 0
    assert load_autoencoder(tmp_path / "folder").config.scaling_factor == 0.7


def test_a_model_folder_and_overwrite(run_folder, tmp_path, capsys):
    arguments = [str(run_folder / "model"), "--format", "diffusers", "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    assert main(arguments) == 2
    assert "exists" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0


def test_groups_that_a_file_does_not_tell(tmp_path, capsys):
    model = make_kl(block_out_channels=(24, 48), norm_num_groups=4)
    save_file(model.state_dict(), tmp_path / "vae.safetensors")
    arguments = [str(tmp_path / "vae.safetensors"), "--format", "diffusers", "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "--norm-num-groups N" in capsys.readouterr().err
    assert main([*arguments, "--norm-num-groups", "0"]) == 2
    assert main([*arguments, "--norm-num-groups", "4"]) == 0
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    assert torch.equal(load_autoencoder(tmp_path / "out")(images).sample, model(images).sample)


def test_notes(run_folder, tmp_path, capsys):
    arguments = [str(run_folder), "--format", "diffusers", "--family", "sd1", "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith("note: family sd1 changes nothing in this format")


def published(path, model):
    """A file in latent diffusion's layout that says nothing of its scale."""
    export_autoencoder(model, path, format="ldm")
    save_file(load_file(path), path)
    return path


@pytest.mark.parametrize("layout", ["diffusers", "ldm"])
def test_the_family_gives_a_published_file_its_scale(tmp_path, capsys, layout):
    source = published(tmp_path / "published.safetensors", make_kl(scaling_factor=None))
    out = tmp_path / ("out" if layout == "diffusers" else "out.safetensors")
    assert main([str(source), "--format", layout, "--family", "sd1", "--out", str(out)]) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1
    assert f"{source} does not record its scale; sd1's" in notes[0]
    model = load_autoencoder(out)
    assert (model.config.scaling_factor, model.config.shift_factor) == (0.18215, 0.0)
    if layout == "diffusers":
        assert model.config.sample_size == 512


def test_the_family_changes_no_scale_that_is_recorded(run_folder, tmp_path):
    arguments = ["--format", "diffusers", "--family", "sd1", "--out", str(tmp_path / "out")]
    assert main([str(run_folder), *arguments]) == 0
    assert load_autoencoder(tmp_path / "out").config.scaling_factor == 0.7


def test_a_published_file_for_comfyui(tmp_path):
    model = make_kl(block_out_channels=(128, 256, 512), layers_per_block=2, scaling_factor=None, **THREE)
    source = published(tmp_path / "published.safetensors", model)
    out = tmp_path / "out.safetensors"
    assert main([str(source), "--format", "comfyui", "--family", "sdxl", "--out", str(out)]) == 0
    assert all(torch.equal(tensor, load_file(source)[name]) for name, tensor in load_file(out).items())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{tmp}/nowhere", "--format", "ldm", "--out", "{tmp}/a.safetensors"], "nowhere"),
        (["{run}", "--format", "ldm", "--out", "{tmp}/a"], "end it in .safetensors"),
        (["{run}", "--format", "comfyui", "--out", "{tmp}/a.safetensors"], "needs --family"),
        (
            ["{run}", "--format", "comfyui", "--family", "sd1", "--out", "{tmp}/a.safetensors"],
            "block_out_channels",
        ),
        (["{run}", "--format", "onnx", "--out", "{tmp}/a"], "invalid choice: 'onnx'"),
        (["{run}", "--format", "ldm"], "--out"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(run_folder, tmp_path, capsys, arguments, says):
    before = all_files(tmp_path)
    assert main([argument.format(tmp=tmp_path, run=run_folder) for argument in arguments]) == 2
    printed, errors = capsys.readouterr()
    assert printed == ""
    assert says in errors.splitlines()[-1]
    assert all_files(tmp_path) == before
