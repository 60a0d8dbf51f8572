import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from latentae import VQGAN, cli, load_autoencoder
from latentae.latents.command import main
from tests.latents.conftest import SHAPE, make_kl, make_vq

ROOT = Path(__file__).resolve().parents[2]


def make_fsq():
    """No stock class can hold it."""
    return VQGAN(**{**SHAPE, "quantizer": {"type": "fsq", "levels": [3, 3, 3, 3]}})


def test_a_model_is_calibrated(picture_folder, tmp_path, capsys):
    make_kl().save_pretrained(tmp_path / "kl")
    arguments = [str(tmp_path / "kl"), "--data", str(picture_folder), "--max-images", "20"]
    arguments += ["--image-size", "12", "--batch-size", "7", "--seed", "3", "--per-channel"]
    assert cli.main(["stats", *arguments, "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "posterior samples of 20 crops" in shown
    assert "12 pixels" in shown
    assert "mean and std of each channel folded" in shown
    assert "held-out" in shown
    assert f"written to {tmp_path / 'out'}" in shown
    model = load_autoencoder(tmp_path / "out")
    assert (model.config.scaling_factor, model.config.shift_factor) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "the following arguments are required: MODEL, --data"),
        (["{kl}"], "the following arguments are required: --data"),
        (["{kl}", "--data", "{images}", "--batch", "5"], "unrecognized arguments: --batch"),
        (["{kl}", "--data", "{images}", "--out", "x", "--in-place"], "not allowed with argument --out"),
        (["{kl}", "--data", "{images}", "--batch-size", "many"], "invalid int value: 'many'"),
        (["{kl}", "--data", "{images}", "--batch-size", "0"], "error: batch_size is 0"),
        (["{kl}", "--data", "{images}", "--seed", "-1"], "error: seed=-1"),
        (["{kl}", "--data", "{images}", "--image-size", "1"], "error: images of 1x1 pixels are smaller"),
        (["{kl}", "--data", "{images}", "--out", "{kl}"], "is there already; choose a new folder"),
        (["{kl}", "--data", "{images}/nowhere"], "does not exist"),
        (["{kl}", "--data", "{images}", "--split", "dev"], "split 'dev' is not in"),
        (["{kl}", "--data", "{images}", "--max-pixels", "9"], "24 by 24 are 576 pixels, more than the limit"),
        (["{kl}", "--data", "{images}", "--value-range", "1", "0"], "value_range=(1.0, 0.0) must be"),
        (["{kl}", "--data", "{images}", "--image-column", "x"], "image_column='x' is for tables"),
        (["{kl}", "--data", "{images}", "--dataset-config", "x"], "dataset_config='x' belongs to datasets"),
        (["{images}", "--data", "{images}"], "error: "),
        (["{images}", "--data", "{images}", "--in-place"], "no model in"),
        (["{vq}", "--data", "{images}", "--per-channel"], "error: per_channel is for KL-VAEs"),
        (["{twelve}", "--data", "{images}"], "a PNG picture, not of 12 channels"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, says, picture_folder, tmp_path, capsys):
    make_kl().save_pretrained(tmp_path / "kl")
    make_vq().save_pretrained(tmp_path / "vq")
    make_kl(in_channels=12, out_channels=12).save_pretrained(tmp_path / "twelve")
    places = {name: tmp_path / name for name in ("kl", "vq", "twelve")}
    assert main([word.format(images=picture_folder, **places) for word in arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error
    if error.startswith("error: "):
        assert len(error.splitlines()) == 1


def test_the_second_process_keeps_still(picture_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    make_kl().save_pretrained(tmp_path / "kl")
    arguments = [str(tmp_path / "kl"), "--data", str(picture_folder), "--max-images", "4"]
    assert main(arguments) == 0
    assert main([*arguments, "--batch-size", "0"]) == 2
    assert capsys.readouterr() == ("", "")
    for file in picture_folder.iterdir():
        file.write_bytes(b"no picture")
    assert main(arguments) == 2  # but of what only it has met it speaks
    assert "cannot be decoded" in capsys.readouterr().err


def test_help_is_there_before_torch():
    code = (
        "import sys; from latentae.cli import main; code = main(['stats', '--help']); "
        "sys.exit(code or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "--per-channel" in done.stdout


def test_the_script_is_the_command():
    script = ROOT / "scripts/latent_stats.py"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert "usage: latentae stats" in done.stderr


@pytest.mark.parametrize(
    ("model", "arguments", "says"),
    [
        (make_vq(), ["--per-channel"], "per_channel is for KL-VAEs"),
        (
            make_kl(use_quant_conv=False),
            ["--per-channel"],
            "quant_conv and post_quant_conv, which this model",
        ),
        (make_fsq(), ["--out", "{tmp}/out"], "quantizer 'fsq' is not"),
    ],
)
def test_what_cannot_be_is_refused_before_images_are_read(model, arguments, says, tmp_path, capsys):
    model.save_pretrained(tmp_path / "model")
    words = [word.format(tmp=tmp_path) for word in arguments]
    # There are no such images, which would be said if they were looked for first.
    assert main([str(tmp_path / "model"), "--data", str(tmp_path / "nowhere"), *words]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert says in shown.err


def test_a_model_that_makes_nan_is_refused_before_it_is_measured(picture_folder, tmp_path, capsys):
    model = make_kl()
    torch.nn.init.constant_(model.decoder.conv_out.bias, float("nan"))
    model.save_pretrained(tmp_path / "broken")
    assert main([str(tmp_path / "broken"), "--data", str(picture_folder), "--image-size", "16"]) == 2
    shown = capsys.readouterr()
    assert "posterior samples" not in shown.out
    assert "makes images that are not finite" in shown.err
