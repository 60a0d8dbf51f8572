import json

import numpy as np
import pytest
import torch
from PIL import Image

from latentae.evaluation import evaluate as module
from latentae.evaluation.evaluate import evaluate
from latentae.evaluation.request import WORK, Request
from latentae.evaluation.settings import Settings
from latentae.report.results import Results
from tests.evaluation.conftest import tiny_model

CPU = torch.device("cpu")


@pytest.fixture
def request_of(models, measures, image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "open_measures", lambda device, **options: measures)
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)

    def make(*names, **changes):
        values = {
            "models": [str(tmp_path / name) for name in names or models],
            "data": str(image_folder),
            "out": tmp_path / "report",
            "protocol": "native",
            "settings": Settings(cycle_images=4, cycle_rounds=(1, 2)),
        }
        return Request(**{**values, **changes})

    return make


def test_a_report_of_two_models(request_of, models, tmp_path):
    said = []
    results = evaluate(request_of(limit=40), CPU, said.append)
    out = tmp_path / "report"
    assert sorted(path.name for path in out.iterdir()) == [
        "pictures",
        "report.html",
        "results.json",
        "results.md",
    ]
    assert Results.load(out).models == results.models
    assert list(results.models) == ["kl", "vq"]
    assert results.protocol["images"] == 40
    assert {"psnr", "ssim", "lpips_alex", "rfid", "kid", "l1"} <= results.models["kl"].keys()
    assert "40 of 70 images" in said[0]
    data = json.loads((out / "results.json").read_text())
    assert data["models"]["kl"]["psnr"].keys() == {"value", "low", "high"}
    for picture in results.pictures:
        for file in (picture.original, *picture.reconstructions.values()):
            assert (out / file).is_file()
    assert sum("worst of kl" in picture.why for picture in results.pictures) == 16


def test_numbers_are_those_of_the_models_alone(request_of):
    both = evaluate(request_of(limit=10), CPU)
    alone = evaluate(request_of("vq", limit=10, out=request_of().out / "alone", overwrite=True), CPU)
    for name, value in alone.models["vq"].items():
        if name != "images_per_second":
            assert value == both.models["vq"][name]
    assert both.protocol["data"] == alone.protocol["data"]


def test_an_interrupted_evaluation_gives_the_same_report(request_of, monkeypatch, tmp_path):
    whole = evaluate(request_of("kl", out=tmp_path / "whole"), CPU)
    measure_block = module.Evaluation._measure_block

    def stop(self, block, subject, shards):
        if block.number == 2:
            raise KeyboardInterrupt
        measure_block(self, block, subject, shards)

    with monkeypatch.context() as patch:
        patch.setattr(module.Evaluation, "_measure_block", stop)
        with pytest.raises(KeyboardInterrupt):
            evaluate(request_of("kl"), CPU)
    assert (tmp_path / "report" / WORK).is_dir()
    said = []
    again = evaluate(request_of("kl"), CPU, said.append)
    assert any("going on: 2 of 3 blocks" in text for text in said)
    assert not (tmp_path / "report" / WORK).exists()
    numbers = [{k: v for k, v in r.models["kl"].items() if k != "images_per_second"} for r in (whole, again)]
    assert numbers[0] == numbers[1]
    assert whole.details == again.details


def test_a_report_is_kept_unless_told(request_of, tmp_path):
    evaluate(request_of("kl", limit=3), CPU)
    before = (tmp_path / "report/results.json").read_bytes()
    with pytest.raises(ValueError, match="holds a report already"):
        evaluate(request_of("vq", limit=2), CPU)
    assert (tmp_path / "report/results.json").read_bytes() == before
    (tmp_path / "report/pictures/mine.png").write_bytes(b"")
    evaluate(request_of("vq", limit=2, overwrite=True), CPU)
    assert list(Results.load(tmp_path / "report").models) == ["vq"]
    assert sorted(path.name for path in (tmp_path / "report/pictures").iterdir()) == [
        "000000.png",
        "000000_0.png",
        "000035.png",
        "000035_0.png",
        "mine.png",
    ]


def test_mixed_sizes_and_unreadable_images(request_of, image_folder, tmp_path):
    generator = np.random.default_rng(1)
    for number, size in enumerate([(20, 33), (33, 20), (20, 33), (1, 9)]):
        pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(image_folder / f"other{number}.png")
    (image_folder / "broken.png").write_bytes(b"not a picture")
    said = []
    results = evaluate(request_of("kl"), CPU, said.append)
    assert results.protocol["images"] == 73
    broken, small = results.protocol["unreadable"]
    assert broken.startswith("broken.png: ")
    assert "other3.png: a picture of 1 x 9 is smaller than one latent" in small
    assert [text for text in said if text.startswith("left out")] == [
        f"left out: {reason}" for reason in (broken, small)
    ]
    assert any("2 of 75 images could not be measured" in text for text in results.details["kl"].remarks)


@pytest.mark.parametrize("channels", [1, 5])
def test_other_numbers_of_channels(channels, request_of, measures, tmp_path):
    (tmp_path / "arrays").mkdir()
    generator = np.random.default_rng(0)
    for number in range(3):
        array = generator.integers(0, 256, (16, 20, channels), dtype=np.uint8)
        np.save(tmp_path / f"arrays/{number}.npy", array)
    model = tiny_model("vq", in_channels=channels, out_channels=channels)
    model.save_pretrained(tmp_path / "model")
    measures.features = {} if channels > 4 else measures.features
    request = request_of(models=[f"vq={tmp_path / 'model'}"], data=str(tmp_path / "arrays"))
    results = evaluate(request, CPU)
    assert results.protocol["channels"] == channels
    assert ("rfid" in results.models["vq"]) == (channels == 1)
    assert (tmp_path / "report" / results.pictures[0].original).is_file()


def test_one_image(request_of):
    results = evaluate(request_of("kl", limit=1), CPU)
    assert results.protocol["images"] == 1
    assert "rFID left out: it needs two images or more" in results.details["kl"].remarks
    assert results.models["kl"]["psnr"].low is None
    assert results.protocol["cycle_images"] == 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"models": ["nowhere/model"]}, "nowhere/model"),
        ({"data": "./nowhere"}, "does not exist"),
        ({"protocol": "crop-64"}, r"smaller than the crop of 64; use resize-64"),
        ({"split": "test"}, "split 'test' is not in"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(changes, says, request_of, tmp_path):
    with pytest.raises(ValueError, match=says):
        evaluate(request_of("kl", **changes), CPU)
    assert not (tmp_path / "report").exists()
