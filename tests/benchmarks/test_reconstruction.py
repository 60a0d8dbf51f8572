import json
import sys

import pytest
import torch

from benchmarks.stand_ins import FOREIGN, OWN, save_stand_in
from latentae import load_autoencoder
from latentae.evaluation import evaluate as evaluation
from latentae.evaluation.features import Measures
from tests.evaluation.conftest import MeanDistance, MeanFeatures
from tests.training.conftest import draw_images


@pytest.fixture
def run(script, monkeypatch, tmp_path, capsys):
    """Runs the script on three images, with cheap networks; returns exit code, output and errors."""
    module = script("bench_reconstruction")
    measures = Measures({"lpips_alex": MeanDistance()}, {"inception": MeanFeatures()})
    monkeypatch.setattr(evaluation, "open_measures", lambda device, **options: measures)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("LATENTAE_CACHE", str(tmp_path / "cache"))
    draw_images(tmp_path / "images", count=3)

    def call(*words):
        data = ["--data", str(tmp_path / "images"), "--out", str(tmp_path / "report"), "--protocol", "native"]
        monkeypatch.setattr(sys, "argv", ["bench_reconstruction.py", *map(str, words), *data])
        return module.main(), *capsys.readouterr()

    call.module = module
    return call


def rows(text):
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_without_a_hub_one_sentence_names_the_remedy(run):
    code, shown, error = run()
    assert (code, shown) == (2, "")
    (sentence,) = error.splitlines()
    assert sentence.startswith("error: none of 16 model(s) can be opened, since the hub cannot be reached")
    assert "NAME=PATH" in sentence
    assert "--stand-ins" in sentence


def test_stand_ins_and_own_weights_beside_published_numbers(run, tmp_path):
    save_stand_in("AutoencoderTiny", tmp_path / "weights")
    names = ("sdxl", "flux2", "ldm-vq-f4", "dc-ae-f32", "wan-2.1")
    code, shown, _ = run(*names, f"taef2={tmp_path / 'weights'}", "--stand-ins")
    assert code == 0
    table = rows(shown)
    assert [row[0] for row in table if row[1:2] == ["of a random stand-in"]] == list(names)
    assert [row[0] for row in table if row[1:2] == ["of this run"]] == ["taef2"]
    published = next(row for row in table if row[1:2] == ["published"])
    assert published[2:7] == ["0.665", "27.38", "0.794", "-", "-"]
    assert published[-1].endswith("3 images here, and rFID falls with their number")
    measured = json.loads((tmp_path / "report/results.json").read_text())["models"]
    assert table[2][3] == f"{measured['sdxl']['psnr']['value']:.2f}"


def test_some_models_that_cannot_be_opened_are_left_out(run, tmp_path):
    save_stand_in("AutoencoderTiny", tmp_path / "weights")
    code, shown, error = run("sdxl", "sd3", tmp_path / "weights")
    assert code == 0
    assert [row[0] for row in rows(shown) if row[1:2] == ["of this run"]] == ["weights"]
    assert "sdxl left out: " in error
    assert "sd3 left out: the hub cannot be reached" in error
    code, _, error = run("llamagen-vq-f16")
    assert (code, error) == (
        2,
        "error: llamagen-vq-f16 is not on the hub in a form that can be opened: give llamagen-vq-f16=PATH\n",
    )
    code, _, error = run(tmp_path / "images", "--overwrite")
    assert code == 2
    assert error.startswith("error: none of 1 model(s) can be opened, such as images: ")


def test_the_list_has_every_model_and_its_numbers(run):
    code, shown, _ = run("--list")
    table = rows(shown)[2:]
    assert code == 0
    assert list(dict.fromkeys(row[0] for row in table)) == list(run.module.PUBLIC)
    assert sum("no number with a source was found" in row for row in table) == 9
    assert ["flux2", "AutoencoderKLFlux2", "black-forest-labs/FLUX.2-dev", "-", "36.28"] in [
        row[:5] for row in table
    ]


@pytest.mark.parametrize("name", ["AutoencoderRAE", *OWN])
def test_stand_ins_take_images_of_256_pixels(name, tmp_path):
    save_stand_in(name, tmp_path / "model", seed=1)
    model = load_autoencoder(tmp_path / "model")
    images = torch.rand(1, 3, 256, 256) * 2 - 1
    with torch.no_grad():
        assert model(images).sample.shape == images.shape


def test_every_public_model_has_a_stand_in(run):
    classes = {public.class_name for public in run.module.PUBLIC.values() if public.path}
    assert classes <= set(FOREIGN) | set(OWN)
