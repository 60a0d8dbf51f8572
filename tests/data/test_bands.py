import numpy as np
import pytest

from latentae.data.bands import BandSource, spectral_bands
from tests.data.pictures import ListSource


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
