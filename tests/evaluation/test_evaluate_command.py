import json
import time

import pytest
import torch

from latentae import cli
from latentae.evaluation import evaluate as module
from tests.evaluation.conftest import tiny_model
from tests.processes import environment, fork


def main(arguments):
    return cli.main(["evaluate", *arguments])


@pytest.fixture
def places(models, image_folder, tmp_path, measures, monkeypatch):
    monkeypatch.setattr(module, "open_measures", lambda device, **options: measures)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
    twelve = tiny_model("kl", in_channels=12, out_channels=12)
    twelve.save_pretrained(tmp_path / "twelve")
    tiny_model("kl", scaling_factor=None).save_pretrained(tmp_path / "unscaled")
    (tmp_path / "text.safetensors").write_text("no model")
    return {"images": image_folder, "here": tmp_path, "kl": tmp_path / "kl", "vq": tmp_path / "vq"}


def test_a_table_and_where_the_report_is(places, tmp_path, capsys):
    arguments = ["first={kl}", "{vq}", "--data", "{images}", "--out", "{here}/report", "--limit", "5"]
    arguments += ["--protocol", "resize-16", "--cycle-images", "2", "--batch-size", "3"]
    assert main([word.format(**places) for word in arguments]) == 0
    shown = capsys.readouterr()
    assert "PSNR (dB)" in shown.out
    assert f"report: {tmp_path}/report/report.html" in shown.out
    assert "note: MS-SSIM left out" in shown.out
    assert "5 of 70 images" in shown.err
    assert f"\n5 images of {places['images']}, resize-16\n" in shown.out
    data = json.loads((tmp_path / "report/results.json").read_text())
    assert list(data["models"]) == ["first", "vq"]
    assert data["protocol"]["batch_size"] == 3


def test_a_teacher(places, tmp_path, capsys):
    arguments = ["new={kl}", "--teacher", "old={kl}", "--data", "{images}", "--out", "{here}/report"]
    arguments += ["--protocol", "native", "--limit", "4", "--cycle-images", "0", "--family", "sd1"]
    assert main([word.format(**places) for word in arguments]) == 0
    shown = capsys.readouterr().out
    assert "old (teacher)" in shown
    lines = [line for line in shown.splitlines() if line]
    assert lines[-2:] == [
        "new: its latents are bit-equal to those of old. Any denoiser of old fits.",
        f"report: {tmp_path}/report/report.html",
    ]
    data = json.loads((tmp_path / "report/results.json").read_text())
    assert data["fit"]["new"]["verdict"] == "equal"
    assert data["protocol"]["teacher"]["families"] == ["sd1"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "the following arguments are required: MODEL, --data, --out"),
        (["{kl}", "--data", "{images}", "--out", "{here}/r", "--batch", "5"], "unrecognized arguments"),
        (["{kl}", "--data", "{images}", "--out", "{here}/r", "--batch-size", "0"], "--batch-size: '0'"),
        (["{kl}", "--data", "{images}", "--out", "{here}/r", "--limit", "0"], "--limit: '0'"),
        (
            ["{kl}", "--data", "{images}", "--out", "{here}/r", "--precision", "fp8"],
            "--precision: invalid choice: 'fp8'",
        ),
        (["{kl}", "--data", "{images}", "--out", "{here}/r", "--protocol", "x"], "protocol is 'x'"),
        (["{kl}", "--data", "{images}", "--out", "{here}"], "holds other files than a report"),
        (["{kl}", "--data", "{images}", "--out", "{here}/text.safetensors/r"], "is a file"),
        (["{kl}", "--data", "{here}/nowhere", "--out", "{here}/r"], "does not exist"),
        (
            ["{kl}", "--data", "owner/images", "--out", "{here}/r"],
            "as a dataset of the Hugging Face hub it failed",
        ),
        (["owner/model", "--data", "{images}", "--out", "{here}/r"], "the hub cannot be reached"),
        (["{images}", "--data", "{images}", "--out", "{here}/r"], "error: "),
        (["{here}/text.safetensors", "--data", "{images}", "--out", "{here}/r"], "error: "),
        (["{here}/twelve", "--data", "{images}", "--out", "{here}/r"], "a PNG picture, not of 12 channels"),
        (["{here}/twelve", "{kl}", "--data", "{images}", "--out", "{here}/r"], "twelve 12, kl 3"),
        (["{kl}", "--teacher", "{kl}", "--data", "{images}", "--out", "{here}/r"], "is the only model"),
        (["{kl}", "--family", "sd1", "--data", "{images}", "--out", "{here}/r"], "add --teacher MODEL"),
        (
            ["{kl}", "--teacher", "old={here}/unscaled", "--data", "{images}", "--out", "{here}/r"],
            "the scale of the latents of old is not known",
        ),
        (
            ["{vq}", "--teacher", "{kl}", "--family", "sd1", "--data", "{images}", "--out", "{here}/r"],
            "kl has no codebook",
        ),
        (
            ["{kl}", "--teacher", "{here}/twelve", "--data", "{images}", "--out", "{here}/r"],
            "models take different numbers of channels (kl 3, twelve 12)",
        ),
        (["{kl}", "{kl}", "--data", "{images}", "--out", "{here}/r"], "are both called kl"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, says, places, tmp_path, capsys):
    assert main([word.format(**places) for word in arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error
    if error.startswith("error: "):
        assert len(error.splitlines()) == 1
    assert not (tmp_path / "r").exists()


def test_a_model_that_makes_nan_is_named(places, models, capsys):
    torch.nn.init.constant_(models["kl"].decoder.conv_out.bias, float("nan"))
    models["kl"].save_pretrained(places["kl"])
    arguments = ["{vq}", "bad={kl}", "--data", "{images}", "--out", "{here}/r", "--protocol", "native"]
    assert main([word.format(**places) for word in arguments]) == 2
    assert "error: bad makes images that hold NaN or infinity" in capsys.readouterr().err
    assert not (places["here"] / "r/results.json").exists()


def test_stopped_by_hand(places, monkeypatch, capsys):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "open_models", stop)
    arguments = ["{kl}", "--data", "{images}", "--out", "{here}/r"]
    assert main([word.format(**places) for word in arguments]) == 130
    assert capsys.readouterr().err == "interrupted; the same command continues from here\n"


@pytest.mark.usefixtures("own_cache_with_trunks", "one_thread")
def test_killed_in_the_middle_it_goes_on(models, image_folder, tmp_path, capsys):
    """The process is killed, not asked to stop."""
    models["kl"].save_pretrained(tmp_path / "kl")
    arguments = [str(tmp_path / "kl"), "--data", str(image_folder), "--protocol", "native"]
    arguments += ["--cycle-images", "0", "--no-features", "--out"]
    words = ["evaluate", *arguments, str(tmp_path / "report")]
    started = fork(cli.main, words, variables=environment())
    deadline = time.monotonic() + 120
    while not list((tmp_path / "report").glob(".measured/kl-*/0*.safetensors")):
        assert started.is_alive(), "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    started.kill()
    started.join()
    assert not (tmp_path / "report/results.json").exists()
    for name in ("report", "whole"):
        assert main([*arguments, str(tmp_path / name)]) == 0
    assert capsys.readouterr().err.count("going on: ") == 1
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("report", "whole")]
    for result in results:
        del result["models"]["kl"]["images_per_second"]
    assert results[0] == results[1]
