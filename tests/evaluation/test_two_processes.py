"""Two processes write the results.json of one, to the last digit; what stops one of them stops both."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

from latentae import cli
from tests.evaluation.conftest import tiny_model
from tests.evaluation.ifid_on_two_ranks import measured
from tests.processes import ROOT, environment, launch, torchrun


def results(folder):
    """All but how fast it went, and where."""
    data = json.loads((folder / "results.json").read_text())
    for metrics in data["models"].values():
        del metrics["images_per_second"]
    del data["protocol"]["hardware"], data["protocol"]["batch_size"]
    return data


@pytest.mark.usefixtures("own_cache_with_trunks", "one_thread")
def test_two_processes_write_the_results_of_one(models, image_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (image_folder / "004.png").write_bytes(b"")
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
    arguments = [*(str(tmp_path / name) for name in models), "--data", str(image_folder)]
    arguments += ["--protocol", "native", "--cycle-images", "7", "--limit", "50"]

    def out(name):
        return ["--out", str(tmp_path / name)]

    shown = launch(ROOT / "scripts/evaluate.py", 2, *arguments, *out("two"))
    assert shown.stdout.count("report: ") == 1
    assert cli.main(["evaluate", *arguments, *out("one")]) == 0
    assert cli.main(["evaluate", *arguments, *out("batches"), "--batch-size", "5"]) == 0
    one, two, batches = (results(tmp_path / name) for name in ("one", "two", "batches"))
    assert one["protocol"]["images"] == 49
    assert one["models"]["kl"].keys() >= {"fd_vgg16", "lpips_vgg", "psnr", "cycle_psnr_10"}
    assert one == two
    hardware = json.loads((tmp_path / "two/results.json").read_text())["protocol"]["hardware"]
    assert hardware.startswith("2 x ")
    for name, metrics in one["models"].items():
        other = batches["models"][name]
        assert metrics["psnr"]["value"] == pytest.approx(other["psnr"]["value"], abs=1e-3)  # dB
        assert metrics["ssim"]["value"] == pytest.approx(other["ssim"]["value"], abs=1e-5)
        assert metrics["fd_vgg16"]["value"] == pytest.approx(other["fd_vgg16"]["value"], rel=1e-3)


@pytest.mark.usefixtures("own_cache_with_trunks", "one_thread")
def test_two_processes_measure_the_same_beside_a_teacher(image_folder, tmp_path):
    for seed, name in enumerate(("new", "old")):
        model = tiny_model("kl", seed)
        model.change_config(scaling_factor=0.5)
        model.save_pretrained(tmp_path / name)
    arguments = [str(tmp_path / "new"), "--teacher", str(tmp_path / "old"), "--data", str(image_folder)]
    arguments += ["--protocol", "native", "--cycle-images", "0", "--no-features", "--limit", "50"]
    launch(ROOT / "scripts/evaluate.py", 2, *arguments, "--out", str(tmp_path / "two"))
    assert cli.main(["evaluate", *arguments, "--out", str(tmp_path / "one")]) == 0
    one, two = (results(tmp_path / name) for name in ("one", "two"))
    assert one["fit"]["new"]["new_decoder_on_old_latents"].keys() >= {"psnr_loss", "ssim", "lpips_alex"}
    assert one["fit"]["new"]["relative_mse"] > 0
    assert one == two


@pytest.mark.usefixtures("one_thread")
def test_two_processes_measure_the_same_colours_and_ifid(image_folder, tmp_path):
    script = Path(__file__).with_name("ifid_on_two_ranks.py")
    launch(script, 2, str(image_folder), str(tmp_path))
    two = json.loads((tmp_path / "two.json").read_text())
    one = measured(image_folder, tmp_path / "one", torch.device("cpu"))
    assert one.keys() >= {"ifid", "rfid", "precision", "recall", "clip_mmd", "delta_e", "snr_4px", "corner"}
    assert json.loads(json.dumps(one)) == two


def test_what_one_of_two_processes_meets_stops_both(image_folder, tmp_path):
    """A model that makes NaN of image 33 alone, which is in the block of the second process."""
    launch(Path(__file__).with_name("nan_on_one_rank.py"), 2, str(image_folder), str(tmp_path))
    said = [(tmp_path / f"rank{rank}.txt").read_text() for rank in range(2)]
    assert [line.partition(":")[0] for line in said] == ["bad makes images that hold NaN or infinity"] * 2


@pytest.mark.usefixtures("own_cache_with_trunks")
def test_a_mistake_is_said_once(models, image_folder, tmp_path):
    models["kl"].save_pretrained(tmp_path / "kl")
    arguments = [str(tmp_path / "kl"), "--data", str(image_folder), "--out", str(tmp_path / "report")]
    done = subprocess.run(
        [*torchrun(2), "scripts/evaluate.py", *arguments, "--no-features", "--protocol", "crop-64"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(),
    )
    assert done.returncode != 0
    assert done.stderr.count("error: none of the images that were tried can be measured") == 1
