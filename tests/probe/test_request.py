import json
from dataclasses import replace
from pathlib import Path

import pytest

from latentae.probe.request import ProbeRequest


@pytest.fixture
def request_of(tmp_path):
    return ProbeRequest(models=["a=somewhere"], data="photos", out=tmp_path / "probe")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": []}, "there is no model"),
        ({"models": ["x/one", "y/one"]}, "both called one"),
        ({"models": [".a=x/one"]}, r"'\.a' is no name for a folder"),
        ({"steps": 5, "seconds": 5.0}, "--steps and --seconds are two ways"),
        ({"steps": 0}, "steps is 0, but must be 1 or more"),
        ({"samples": 1}, "samples is 1, but must be 2 or more"),
        ({"guidance_scale": 0.5}, "guidance_scale is 0.5"),
        ({"seconds": 0.0}, "seconds is 0.0, but must be more than 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"inception": Path("nowhere.pt")}, "there is no such file"),
        ({"families": ["b=sd1"]}, "names no model: the models are called a"),
    ],
)
def test_what_cannot_be(request_of, changes, message):
    request_of.check()
    with pytest.raises(ValueError, match=message):
        replace(request_of, **changes).check()


def test_settings_are_what_results_depend_on(request_of):
    settings = request_of.settings()
    assert "out" not in settings
    assert "num_workers" not in settings
    assert settings["size"] == {"width": 192, "depth": 6, "largest_side": 16}
    assert json.loads(json.dumps(settings)) == settings


def test_families_are_told_by_the_models(request_of):
    assert replace(request_of, families=["sd1"]).settings() == request_of.settings()
