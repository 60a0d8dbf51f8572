import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import latentae
from latentae.data.folder import FolderSource
from latentae.evaluation import evaluate as module
from latentae.evaluation.assembly import Assembled
from latentae.evaluation.blocks import PROTOCOLS, ImageBlocks
from latentae.evaluation.evaluate import (
    RESULTS,
    WORK,
    Request,
    describe_model,
    describe_protocol,
    evaluate,
    hardware,
)
from latentae.evaluation.measuring import Settings
from latentae.evaluation.models import NamedModel
from latentae.evaluation.pictures import choose_pictures, save_crops, save_pictures
from latentae.report.results import Results, Value
from tests.evaluation.conftest import tiny_model
from tests.lock_holder import another_process


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"models": []}, "there is no model"),
        ({"models": ["a/kl", "b/kl"]}, "a/kl and b/kl are both called kl: write another name"),
        ({"protocol": "imagenet"}, "protocol is 'imagenet'"),
        ({"precision": "fp8"}, "precision is 'fp8', but must be one of float32, bfloat16"),
        ({"limit": 0}, "limit is 0"),
        ({"inception": Path("gone.pth")}, r"inception is gone\.pth, but there is no such file"),
        ({"weights": ["clip=gone.pt"]}, r"weights is clip=gone\.pt, but there is no such file"),
        ({"weights": ["clip"], "features": False}, "weights are given, but features are turned off"),
        ({"ifid": True, "features": False}, "ifid is set, but features are turned off"),
        ({"ifid": True, "alpha": True}, "ifid is set, but images are RGBA"),
        ({"groups": ["f8"]}, "group is 'f8', but must be NAME=MODEL,MODEL"),
        ({"groups": ["f8=a,b"]}, "group 'f8=a,b' names b, but the models are a"),
        ({"groups": ["f8=a", "f16=a"]}, "a is in two groups"),
        ({"groups": ["f8=a,a"]}, "a is in two groups"),
        ({"groups": ["f8=a", "f8=a"]}, "two groups are called f8"),
    ],
)
def test_what_cannot_be(changes, says, tmp_path):
    plain = {"models": ["a"], "data": "photos", "out": tmp_path / "new"}
    Request(**plain).check()
    with pytest.raises(ValueError, match=says):
        Request(**{**plain, **changes}).check()
    assert list(tmp_path.iterdir()) == []


def test_only_a_reports_folder_is_written_to(tmp_path):
    def check(overwrite):
        Request(["kl"], "photos", tmp_path, overwrite=overwrite).check()

    check(overwrite=False)
    (tmp_path / "thesis.tex").write_text("")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="holds other files than a report"):
            check(overwrite)
    (tmp_path / WORK).mkdir()  # one that is not finished
    check(overwrite=False)
    (tmp_path / RESULTS).write_text("{}")
    with pytest.raises(ValueError, match="holds a report already: choose another --out"):
        check(overwrite=False)
    check(overwrite=True)


def test_numbers_out_of_range():
    for name in ("batch_size", "num_workers", "cycle_images"):
        with pytest.raises(ValueError, match=f"{name} is -1"):
            Settings(**{name: -1})


@pytest.fixture
def assembled():
    drift = [torch.tensor([21.0, float("nan"), 23.0]), torch.tensor([18.0, float("nan"), 20.0])]
    values = {"psnr": torch.tensor([20.0, 21.0, 25.0]), "cycle_psnr_10": drift[1], "cycle_psnr_2": drift[0]}
    metrics = {"psnr": Value(22.0)}
    broken = ["b.png: it is empty"]
    return Assembled(metrics, values, torch.arange(3), {"mean": [0.0]}, broken, "cd" * 32, ["Few."])


def test_everything_that_numbers_depend_on(assembled, source, measures, tmp_path):
    request = Request(["kl"], "images", tmp_path, limit=3, value_range=(0.0, 5.0))
    blocks = ImageBlocks(source, PROTOCOLS["native"], 3, 3)
    said = describe_protocol(request, "test", blocks, measures, assembled, torch.device("cpu"))
    assert said["name"] == "native"
    assert said["images"] == 3
    assert said["unreadable"] == ["b.png: it is empty"]
    assert said["data"] == {
        "name": "images",
        "split": "test",
        "limit": 3,
        "value_range": (0.0, 5.0),
        "list_sha256": blocks.list_sha256,
        "pixels_sha256": "cd" * 32,
    }
    assert said["networks"] == measures.identities
    assert said["networks"]["inception"] == "means-1"
    assert said["code"]["latentae"] == latentae.__version__
    assert said["hardware"].startswith("1 x ")


def test_a_model(assembled, models, measures):
    measures.remarks.append("No rFID.")
    details = describe_model(NamedModel("vq", "run", models["vq"]), assembled, measures)
    assert (details.class_name, details.path) == ("VQVAE", "run")
    assert details.parameters == sum(parameter.numel() for parameter in models["vq"].parameters())
    assert (details.downsampling_factor, details.latent_channels) == (2, 4)
    assert list(details.cycle_psnr.items()) == [("2", 22.0), ("10", 19.0)]
    assert details.percentiles["psnr"]["50"] == 21.0
    assert details.remarks == [
        "No rFID.",
        "Few.",
        "1 of 4 images could not be measured and are left out, such as b.png: it is empty",
    ]


def test_hardware():
    assert len(hardware(torch.device("cpu"))) > 2


def test_the_commit_is_that_of_the_checkout(monkeypatch, tmp_path):
    def git(*arguments, cwd, **options):
        return subprocess.CompletedProcess(arguments, 0, f"of {cwd.name}\n", "")

    monkeypatch.setattr(module.subprocess, "run", git)
    monkeypatch.setattr(module, "__file__", str(tmp_path / "latentae/evaluation/evaluate.py"))
    assert module.commit() is None  # an installed package, perhaps inside of another checkout
    (tmp_path / ".git").mkdir()
    assert module.commit() == f"of {tmp_path.name}"


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
    assert [crop.model for crop in results.crops] == ["kl"] * 6 + ["vq"] * 6
    assert Results.load(out).crops == results.crops
    assert results.groups == {}


def test_networks_groups_and_ifid_reach_the_report(request_of, tmp_path):
    results = evaluate(request_of(limit=40, ifid=True, groups=["codes=vq"]), CPU)
    assert results.groups == {"codes": ["vq"], "others": ["kl"]}
    assert {"ifid", "precision", "recall", "delta_e"} <= results.models["vq"].keys()
    assert "halfway to the nearest" in results.protocol["ifid"]
    assert '<th colspan="1">codes</th>' in (tmp_path / "report/report.html").read_text()


def test_ifid_without_inception_is_left_out(request_of, measures):
    measures.features = {"vgg16": measures.features["inception"]}
    results = evaluate(request_of("kl", limit=4, ifid=True), CPU)
    assert "ifid" not in results.models["kl"]
    assert "iFID left out: it needs Inception's weights, as rFID does" in results.details["kl"].remarks


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


def test_two_evaluations_never_share_a_folder(request_of, tmp_path):
    """The second one waits, and finds the report of the first one finished."""
    folder = tmp_path / "report"
    (folder / WORK).mkdir(parents=True)
    said = []
    with another_process(folder) as (process, leave):

        def finish(sentence):
            said.append(sentence)
            if "waiting for another process" in sentence:
                assert str(process.pid) in sentence
                (folder / "results.json").write_text("of the first")
                leave.set()

        with pytest.raises(ValueError, match="holds a report already"):
            evaluate(request_of("kl", limit=2), CPU, finish)
    assert any("waiting for another process" in sentence for sentence in said)
    assert (folder / "results.json").read_text() == "of the first"


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
        *(f"crop_{number:03d}{end}.png" for number in range(2) for end in ("", "_0")),
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


def assembled_of(**values):
    rows = {name: torch.tensor(row, dtype=torch.float64) for name, row in values.items()}
    count = len(next(iter(rows.values())))
    return Assembled({}, rows, torch.arange(count), {}, [], "", [])


def test_worst_median_and_random():
    results = {
        "a": assembled_of(psnr=np.arange(100.0), lpips_alex=np.arange(100.0)),
        "b": assembled_of(psnr=np.arange(100.0)),
    }
    reasons = choose_pictures(results)
    worst = {name: {i for i, why in reasons.items() if f"worst of {name}" in why} for name in results}
    assert worst["a"] == set(range(84, 100))
    assert worst["b"] == set(range(16))
    assert {i for i, why in reasons.items() if "median" in why} == set(range(46, 54))
    assert sum("random" in why for why in reasons.values()) == 8
    assert reasons == choose_pictures(results)


def test_worst_by_a_distance_that_all_images_have():
    lpips = [float("nan"), *np.arange(99.0)]
    reasons = choose_pictures({"a": assembled_of(psnr=np.arange(100.0), lpips_alex=lpips)})
    assert {i for i, why in reasons.items() if "worst of a" in why} == set(range(16))


def test_few_images():
    assert set(choose_pictures({"a": assembled_of(psnr=[1.0, 2.0])})) == {0, 1}


def test_crops_are_the_worst_squares(models, tmp_path):
    generator = np.random.default_rng(0)
    (tmp_path / "large").mkdir()
    for number in range(8):
        pixels = generator.integers(0, 256, (96, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"large/{number}.png")
    blocks = ImageBlocks(FolderSource(tmp_path / "large"), PROTOCOLS["native"], 3)
    corner = torch.tensor([[16, 0]] * 7 + [[32, 16]])
    subjects = [NamedModel(name, name, model) for name, model in models.items()]
    results = {name: assembled_of(psnr=np.arange(8.0)) for name in models}
    results["vq"].crops = {"delta_e": torch.arange(8.0), "corner": corner}
    shown = (blocks, subjects, results, tmp_path, torch.device("cpu"))
    pictures = save_pictures({7: ["random"]}, *shown)
    crops = save_crops(pictures, *shown)
    again = {file.name: file.read_bytes() for file in (tmp_path / "pictures").glob("crop_*.png")}
    assert save_crops([], *shown) == crops
    assert again == {file.name: file.read_bytes() for file in (tmp_path / "pictures").glob("crop_*.png")}
    assert [(crop.model, crop.index) for crop in crops] == [("vq", index) for index in (7, 6, 5, 4, 3, 2)]
    first = crops[0]
    assert (first.name, first.left, first.top, first.delta_e) == ("7.png", 16, 32, 7.0)
    original = np.asarray(Image.open(tmp_path / "large/7.png"))[32:96, 16:80]
    assert np.array_equal(np.asarray(Image.open(tmp_path / first.original)), original)
    with torch.no_grad():
        expected = models["kl"](blocks.prepare(7)[None]).sample[0, :, 32:96, 16:80].clamp(-1, 1)
    shown = torch.from_numpy(np.array(Image.open(tmp_path / first.reconstructions["kl"]))).permute(2, 0, 1)
    assert (shown / 127.5 - 1 - expected).abs().max().item() == pytest.approx(0, abs=0.5 / 127)


def test_pictures_are_those_of_the_protocol(source, image_folder, models, tmp_path):
    subjects = [NamedModel(name, name, model) for name, model in models.items()]
    blocks = ImageBlocks(source, PROTOCOLS["native"], 3)
    results = {name: assembled_of(psnr=np.arange(70.0)) for name in models}
    (picture,) = save_pictures({3: ["random"]}, blocks, subjects, results, tmp_path, torch.device("cpu"))
    assert picture.name == "003.png"
    assert picture.values == {"kl": {"psnr": 3.0}, "vq": {"psnr": 3.0}}
    original = np.asarray(Image.open(tmp_path / picture.original))
    assert np.array_equal(original, np.asarray(Image.open(image_folder / "003.png")))
    images = blocks.prepare(3)[None]
    with torch.no_grad():
        expected = models["kl"](images).sample[0].clamp(-1, 1)
    shown = torch.from_numpy(np.array(Image.open(tmp_path / picture.reconstructions["kl"]))).permute(2, 0, 1)
    assert (shown / 127.5 - 1 - expected).abs().max().item() == pytest.approx(0, abs=0.5 / 127)
