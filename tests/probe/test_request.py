import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from latentae.probe.request import ProbeRequest, open_images
from tests.data.pictures import shows_green, write_cutout
from tests.probe.conftest import draw_images


@pytest.fixture
def request_of(tmp_path):
    return ProbeRequest(models=["a=somewhere"], data="photos", out=tmp_path / "probe")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": []}, "there is no model"),
        ({"models": ["x/one", "y/one"]}, "both called one"),
        ({"models": [".a=x/one"]}, r"invalid model name '\.a'"),
        ({"steps": 0}, "steps is 0, but must be 1 or more"),
        ({"samples": 1}, "samples is 1, but must be 2 or more"),
        ({"guidance_scale": 0.5}, "guidance_scale is 0.5"),
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


def test_alpha_is_a_setting_only_where_it_is_given(request_of):
    assert "alpha" not in request_of.settings()
    more = {"alpha": True, "resized_by_alpha": True}  # older probes with alpha resized arrays as bands
    assert replace(request_of, alpha=True).settings() == request_of.settings() | more


@pytest.mark.parametrize("alpha", [True, False])
def test_arrays_are_resized_by_their_alpha(tmp_path, alpha):
    for number in range(8):
        write_cutout(tmp_path / f"data/{number}.npy", side=30)
    request = ProbeRequest(["a"], str(tmp_path / "data"), tmp_path, image_size=16, batch_size=4, alpha=alpha)
    images = open_images(request, 4)
    for blocks in (images.reference, images.measured):
        assert shows_green(blocks.prepare(0)) != alpha


def test_families_are_told_by_the_models(request_of):
    assert replace(request_of, families=["sd1"]).settings() == request_of.settings()


def images_request(folder, **changes):
    return ProbeRequest(models=["a"], data=str(folder), out=folder / "out", image_size=32, **changes)


def test_the_validation_split_is_held_out(image_folder):
    images = open_images(images_request(image_folder, reference_images=10), 3)
    assert (len(images.training), len(images.held_out)) == (48, 12)
    assert len(images.reference.indices) == 10
    assert images.reference.prepare(0).shape == (3, 32, 32)


def test_some_are_held_out_where_there_is_no_such_split(tmp_path):
    draw_images(tmp_path / "flat", 60)
    images = open_images(images_request(tmp_path / "flat"), 3)
    names = [
        {source.name(index) for index in range(len(source))} for source in (images.training, images.held_out)
    ]
    assert len(names[0]) + len(names[1]) == 60
    assert names[0].isdisjoint(names[1])


def test_too_few(image_folder):
    with pytest.raises(ValueError, match="48 training images, fewer than a batch of 49"):
        open_images(images_request(image_folder, batch_size=49), 3)


def test_guidance_without_labels(image_folder, tmp_path):
    (tmp_path / "flat").mkdir()
    for number, file in enumerate((image_folder / "train").glob("*/*.png")):
        shutil.copy(file, tmp_path / f"flat/{number}.png")
    open_images(images_request(image_folder, guidance_scale=2.0), 3)
    for request in (
        images_request(tmp_path / "flat", guidance_scale=2.0),
        images_request(image_folder, guidance_scale=2.0, unconditional=True),
    ):
        with pytest.raises(ValueError, match="guidance_scale is 2, but there are no labels to be guided by"):
            open_images(request, 3)
