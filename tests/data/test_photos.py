import importlib.util
import sys

import numpy as np
import pytest

from latentae.data import training_photos, validation_photos
from latentae.data.photos import BandSource, spectral_bands
from tests.data.pictures import ListSource


def names(source) -> list[str]:
    return [source.name(index) for index in range(len(source))]


def test_training_photographs():
    source = training_photos()
    shapes = {source.name(index): source.load(index, 3).shape for index in range(len(source))}
    assert shapes == {
        "astronaut.png": (512, 512, 3),
        "coffee.png": (400, 600, 3),
        "motorcycle_left.png": (500, 741, 3),
        "motorcycle_right.png": (500, 741, 3),
        "rocket.jpg": (427, 640, 3),
        "retina.jpg": (1411, 1411, 3),
        "ihc.png": (512, 512, 3),
        "flower.jpg": (427, 640, 3),
        "grace_hopper.jpg": (600, 512, 3),
        "camera.png": (512, 512, 3),
        "grass.png": (512, 512, 3),
    }
    assert source.load(0, 3) is source.load(0, 3)


def test_the_last_two_are_grey():
    source = training_photos()
    for index in range(len(source)):
        picture = source.load(index, 3)
        assert np.array_equal(picture[..., :1].repeat(3, axis=2), picture) == (index >= 9)


def test_validation_windows():
    source = validation_photos()
    found = names(source)
    assert len(source) == 36
    assert len(set(found)) == 36
    assert sum(name.startswith("china.jpg") for name in found) == 24
    assert found[:3] == ["china.jpg[0,0]", "china.jpg[0,86]", "china.jpg[0,172]"]
    assert found[-1] == "chelsea.png[172,258]"
    for index in range(36):
        assert source.load(index, 3, minimum_side=16).shape == (128, 128, 3)
    one, below = source.load(0, 3), source.load(found.index("china.jpg[86,0]"), 3)
    assert np.array_equal(one[86:], below[:42])


def test_any_number_of_bands():
    photographs, windows = training_photos(), validation_photos()
    colours, bands = photographs.load(0, 3), photographs.load(0, 13)
    assert bands.shape == (512, 512, 13)
    assert np.array_equal(bands[..., [0, 6, 12]], colours)
    assert photographs.load(0, 13) is bands
    assert windows.load(5, 13).shape == (128, 128, 13)
    assert photographs.load(0, 1).shape == (512, 512, 1)


def test_packages_are_not_imported(monkeypatch):
    for package in ("skimage", "sklearn", "matplotlib"):
        monkeypatch.delitem(sys.modules, package, raising=False)
    training_photos().load(0, 3)
    validation_photos().load(0, 3)
    assert not {"skimage", "sklearn", "matplotlib"} & set(sys.modules)


def test_a_missing_package_says_what_to_install(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "sklearn" else find_spec(name)
    )
    for photos in (training_photos, validation_photos):
        with pytest.raises(ValueError, match="of sklearn is not installed; run `pip install scikit-image"):
            photos()


def test_bands_by_hand():
    colours = np.array([[[200, 100, 0]]], np.uint8)
    assert spectral_bands(colours, 5).tolist() == [[[200, 150, 100, 50, 0]]]
    assert spectral_bands(colours, 2).tolist() == [[[200, 0]]]
    assert spectral_bands(colours, 4)[0, 0].tolist() == [200, 133, 67, 0]  # at ⅔: ⅓ red, ⅔ green
    fractions = spectral_bands(colours.astype(np.float32) / 255, 4)
    assert fractions.dtype == np.float32
    assert fractions[0, 0] == pytest.approx(np.array([200, 400 / 3, 200 / 3, 0]) / 255)


def test_grey_stays_grey_in_every_band():
    grey = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, axis=2)
    for count in (2, 5, 13, 100):
        bands = spectral_bands(grey, count)
        assert bands.dtype == np.uint8
        assert np.array_equal(bands, np.repeat(grey[..., :1], count, axis=2))


def test_one_band_is_refused():
    with pytest.raises(ValueError, match="count=1 must be 2 or more"):
        spectral_bands(np.zeros((1, 1, 3), np.uint8), 1)


def test_source():
    photographs = ListSource(3)
    source = BandSource(photographs)
    assert (len(source), source.name(2)) == (3, "picture2")
    assert np.array_equal(source.load(1, 3), photographs.load(1, 3))
    assert np.array_equal(source.load(1, 1), photographs.load(1, 1))
    bands = source.load(1, 5, minimum_side=7)
    assert photographs.loaded[-1] == (1, 7)
    assert np.array_equal(bands[..., ::2], photographs.load(1, 3))
