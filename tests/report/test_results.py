import json
import math

import pytest

from latentae.report.results import METRICS, Crop, ModelDetails, Picture, Results, Value, info, number


@pytest.fixture
def results():
    details = ModelDetails("KLVAE", "run/model", "ab" * 32, 1000, 8, 4, latents={"mean": [0.0]})
    picture = Picture(
        3, "cat.png", ["random"], "pictures/3.png", {"kl": "pictures/3_kl.png"}, {"kl": {"psnr": 20.0}}
    )
    return Results({"name": "native"}, {"kl": {"psnr": Value(21.5, 21.0, 22.0)}}, {"kl": details}, [picture])


def test_the_json_that_people_build_on(results):
    data = json.loads(results.to_json())
    assert data["models"]["kl"]["psnr"] == {"value": 21.5, "low": 21.0, "high": 22.0}
    assert data["protocol"] == {"name": "native"}


def test_comes_back(results, tmp_path):
    assert Results.from_json(results.to_json()) == results
    (tmp_path / "results.json").write_text(results.to_json())
    assert Results.load(tmp_path) == Results.load(tmp_path / "results.json") == results


def test_crops_and_groups_come_back_and_older_reports_have_none(results):
    assert not {"crops", "groups", "teacher"} & json.loads(results.to_json()).keys()
    results.crops = [
        Crop("kl", 3, "cat.png", 16, 0, 4.5, "pictures/crop_000.png", {"kl": "pictures/crop_000_0.png"})
    ]
    results.groups = {"f8": ["kl"]}
    assert Results.from_json(results.to_json()) == results


def test_an_infinite_psnr_is_valid_json(results):
    results.models["kl"]["psnr"] = Value(math.inf)
    assert "Infinity" not in results.to_json()
    assert math.isnan(Results.from_json(results.to_json()).models["kl"]["psnr"].value)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"models": {"a": {"psnr": 3}}}'])
def test_something_else(text, tmp_path):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match=r"results\.json: this is not the results\.json of an evaluation"):
        Results.load(tmp_path)
    with pytest.raises(ValueError, match=r"gone\.json cannot be read: No such file or directory$"):
        Results.load(tmp_path / "gone.json")


def test_every_metric_is_explained():
    for name, metric in METRICS.items():
        assert name == name.lower()
        assert metric.label
        assert metric.meaning
        assert metric.digits >= 1
    assert METRICS["psnr"].better == "higher"
    assert METRICS["rfid"].better == "lower"
    assert info("mine").label == "mine"


@pytest.mark.parametrize(
    ("value", "text"),
    [(21.504, "21.50"), (math.nan, "-"), (math.inf, "∞"), (-math.inf, "-∞"), (-0.004, "0.00")],
)
def test_numbers(value, text):
    assert number(value, "psnr") == text
